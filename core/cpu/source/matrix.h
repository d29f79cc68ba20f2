/* A matrix of weights as it lies in memory, and products with its transpose. */
#ifndef CORELM_MATRIX_H
#define CORELM_MATRIX_H

#include "pool.h"
#include "vectors.h"

#define BYTES (4 * WIDTH) /* of a vector */

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

/* CLOSE: few rows meet packed weights as integers of 16 bits. ROUNDED: besides, many rows are multiplied as bfloat16
   and added as float32. For weights in float16 and in bfloat16: both are nearer to the float32 result than they are. */
enum Precision { EXACT = 0, CLOSE = 1, ROUNDED = 2 };

/* What becomes of a result: it is put into y, or added to what y holds, or, of matrices [gate, up], silu(gate) * up is
   put into y. */
enum How { REPLACE = 0, ADD = 1, GATE = 2 };

/* All products, shared out to the team; every thread calls it, and all are done when it returns in any. Products of one
   call must not overlap. GATE is for those of which `takes_gates` says so. */
void multiply(Place place, const Product *products, int count, enum How how, int precision);
int takes_gates(const Product *products, int count, int precision);
void multiply_end(void);
#define MOST_PRODUCTS 512 /* of one call */

/* The numbers columns [first, first + count) of a row. first and count are multiples of 32 or the end of the row. */
void unpack(const Matrix *matrix, int64_t expert, int64_t row, int64_t first, int64_t count, float *numbers);

/* Parts of `multiply`. */
#define FEW 4 /* rows of x up to which weights are unpacked in registers */
#define TOGETHER(M) ((M) == 1 ? 4 : 2) /* rows of weights that are worked on side by side then */
void few_rows(const Product *product, int64_t first, int64_t last, const void *ordered, int add, int precision);
size_t ordered_bytes(const Matrix *matrix, int64_t m, int precision);
void put_in_order(const Matrix *matrix, const float *x, int64_t m, int64_t ldx, int precision, void *ordered, Place place);
int takes_integers(const Matrix *matrix);
size_t integer_bytes(const Matrix *matrix, int64_t m);
void make_integers(const Matrix *matrix, const float *x, int64_t m, int64_t ldx, void *integers, int64_t part, int64_t parts);
void integer_rows(const Product *product, int64_t row, const void *integers, float *y);
void many_rows(const Product *product, int64_t first, int64_t last, int add);
#define PANEL 32 /* output features that are computed at once for many rows */

#if defined(__AMX_BF16__)
#define TILES 1
#define TILES_FROM 8 /* rows of x */
int tiles_begin(void); /* 0 where the system gives this process no tiles */
int tiles_are_there(void);
size_t tiled_bytes(int64_t m, int64_t columns);
void tile(const float *x, int64_t m, int64_t ldx, int64_t columns, void *tiled, int64_t part, int64_t parts);
void tile_rows(const Product *product, int64_t first, int64_t last, const void *tiled, enum How how);
#endif

INLINE int64_t row_bytes(const Matrix *a) {
  if (a->type == FLOAT32) return 4 * a->columns;
  if (a->type == BFLOAT16 || a->type == FLOAT16) return 2 * a->columns;
  return a->columns * a->bits / 8;
}

/* What a product with one matrix takes, as pool_run counts it. */
INLINE int64_t work_of(const Matrix *a, int64_t m) { return a->rows * row_bytes(a) * (1 + m / 4); }

/* How many bytes ahead of those at hand to fetch from memory, where `count` rows are read side by side. */
INLINE int64_t bytes_ahead(int64_t bytes, int count) {
  const int64_t together = bytes * count;
  return bytes >= 4096 ? 1024 : (4096 + together - 1) / together * together;
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

INLINE float scale_at(const void *array, int type, int64_t at) {
  if (type == FLOAT32) return ((const float *)array)[at];
  if (type == BFLOAT16) return from_bfloat16(((const uint16_t *)array)[at]);
  if (type == FLOAT16) return from_float16(((const uint16_t *)array)[at]);
  const uint32_t exponent = ((const uint8_t *)array)[at]; /* of MXFP4 */
  return as_float(splat_words(exponent ? exponent << 23 : 1u << 22))[0];
}

/* `count` of them, at most WIDTH, and zeros; nothing else is read. */
INLINE vfloat scales_at(const void *array, int type, int64_t at, int64_t count) {
#if WIDTH == 16
  const __mmask16 mask = (__mmask16)((1u << count) - 1);
  if (type == FLOAT32) return (vfloat)_mm512_maskz_loadu_ps(mask, (const float *)array + at);
  if (type == BFLOAT16)
    return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)array + at)), 16);
  if (type == FLOAT16) return (vfloat)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)array + at));
  const __m512i exponents = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, (const uint8_t *)array + at));
  const __m512i numbers = _mm512_slli_epi32(exponents, 23);
  return (vfloat)_mm512_mask_mov_epi32(numbers, _mm512_cmpeq_epi32_mask(exponents, _mm512_setzero_si512()), _mm512_set1_epi32(1 << 22));
#else
  vfloat numbers = splat(0);
  if (count == WIDTH && type == FLOAT32) return load((const float *)array + at);
  if (count == WIDTH && type == BFLOAT16) return load_bfloat16((const uint16_t *)array + at);
  if (count == WIDTH && type == FLOAT16) return load_float16((const uint16_t *)array + at);
  UNROLL for (int i = 0; i < WIDTH; ++i)
    if (i < count) numbers[i] = scale_at(array, type, at + i);
  return numbers;
#endif
}

/* Vectors of words are taken WIDTH groups at a time, whose scales fill one vector. */
typedef struct {
  int shift;      /* a group has 2**shift words */
  int64_t blocks; /* vectors of words in WIDTH groups */
  vint lanes;     /* 0, 1, 2, … */
} Groups;

INLINE Groups groups_of(const Matrix *a) {
  const int64_t words = (int64_t)a->group * a->bits / 32;
  Groups groups = {__builtin_ctzll((uint64_t)words), words, {0}};
  UNROLL for (int i = 0; i < WIDTH; ++i) groups.lanes[i] = i;
  return groups;
}

/* Which of the WIDTH groups each word of the vector `block` among them is in. */
INLINE vint group_lanes(const Groups *groups, int64_t block) { return (groups->lanes + (int)(block * WIDTH)) >> groups->shift; }

/* y += the products of a row's biases with the sums of x's groups. */
INLINE vfloat add_biases(vfloat y, const void *biases, int type, int64_t at, int64_t all, const float *sums) {
  for (int64_t group = 0; group < all; group += WIDTH)
    y += scales_at(biases, type, at + group, all - group < WIDTH ? all - group : WIDTH) * load(sums + group);
  return y;
}

extern const float MXFP4_VALUES[16], INTEGERS[16]; /* what 4 bits stand for */

#endif
