/* A matrix of weights as it lies in memory, and products with its transpose. */
#ifndef CORELM_MATRIX_H
#define CORELM_MATRIX_H

#include "pool.h"
#include "vectors.h"

enum Type { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, AFFINE = 3, MXFP4 = 4 };

/* Rows are output features. A stack of experts has several such matrices one after the other. */
typedef struct {
  const void *weight; /* floats [rows, columns], or words [rows, columns * bits / 32], the first number lowest */
  const void *scales; /* [rows, columns / group]: floats of scale_type (AFFINE), or exponents + 127 in bytes (MXFP4) */
  const void *biases; /* as scales, added after them; AFFINE only */
  const float *bias;  /* float [rows], added to the output; NULL: none */
  int64_t rows, columns;
  int32_t type, bits, group, scale_type;
} Matrix;

/* y[m, rows] (+)= x[m, columns] * matrix^T */
typedef struct {
  const Matrix *matrix;
  int64_t expert;  /* which of a stack */
  const float *x;
  float *y;
  int64_t m, ldx, ldy; /* rows of x and y, and floats between them */
} Product;

enum Precision { EXACT = 0, ROUNDED = 1 }; /* ROUNDED: many rows are multiplied as bfloat16, and added as float32 */

/* All products, shared out to the team; every thread calls it, and all are done when it returns in any.
   add: to what y holds. Products of one call must not overlap. */
void multiply(Place place, const Product *products, int count, int add, int precision);

/* The numbers columns [first, first + count) of a row. first and count are multiples of 32 or the end of the row. */
void unpack(const Matrix *matrix, int64_t expert, int64_t row, int64_t first, int64_t count, float *numbers);

/* Parts of `multiply`. */
#define FEW 4 /* rows of x up to which weights are unpacked in registers */
void few_rows(const Product *product, int64_t first, int64_t last, const float *shuffled, int add);
size_t shuffled_floats(const Matrix *matrix, int64_t m);
void shuffle(const Matrix *matrix, const float *x, int64_t m, int64_t ldx, float *shuffled);
void many_rows(const Product *product, int64_t first, int64_t last, int add);
#define PANEL 32 /* output features that are computed at once for many rows */

#if defined(__AMX_BF16__)
#define TILES 1
int tiles_begin(void); /* 0 where the system gives this process no tiles */
size_t tiled_bytes(int64_t m, int64_t columns, int precision);
void tile(const float *x, int64_t m, int64_t ldx, int64_t columns, int precision, void *tiled, int64_t part, int64_t parts);
void tile_rows(const Product *product, int64_t first, int64_t last, const void *tiled, int add, int precision);
#endif

INLINE int64_t row_bytes(const Matrix *a) {
  if (a->type == FLOAT32) return 4 * a->columns;
  if (a->type == BFLOAT16 || a->type == FLOAT16) return 2 * a->columns;
  return a->columns * a->bits / 8;
}

INLINE const uint8_t *weight_row(const Matrix *a, int64_t expert, int64_t row) {
  return (const uint8_t *)a->weight + (expert * a->rows + row) * row_bytes(a);
}

/* The n floats from `at` on of an array of a scale type. */
INLINE void read_scales(const void *array, int type, int64_t at, int64_t n, float *out) {
  if (type == FLOAT32) {
    memcpy(out, (const float *)array + at, 4 * (size_t)n);
  } else if (type == BFLOAT16) {
    const uint16_t *p = (const uint16_t *)array + at;
    for (int64_t i = 0; i < n; ++i) out[i] = from_bfloat16(p[i]);
  } else if (type == FLOAT16) {
    const uint16_t *p = (const uint16_t *)array + at;
    for (int64_t i = 0; i < n; ++i) out[i] = from_float16(p[i]);
  } else { /* exponents of MXFP4 */
    const uint8_t *p = (const uint8_t *)array + at;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t bits = p[i] ? (uint32_t)p[i] << 23 : 1u << 22;
      memcpy(out + i, &bits, 4);
    }
  }
}

extern const float MXFP4_VALUES[16];

#endif
