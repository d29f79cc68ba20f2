/* The inner loop of dense products: a few rows of one matrix by a panel of another, held in registers.

   c[rows][PANEL_VECTORS vectors] += sum over k of a[row][k] * b[k][...]. On 32 registers, 24 sums and what they need. */
#ifndef CORELM_BLOCK_H
#define CORELM_BLOCK_H

#include "vectors.h"

#if WIDTH == 16
#define BLOCK_ROWS 12
#define BLOCK_VECTORS 2
#elif WIDTH == 8
#define BLOCK_ROWS 6
#define BLOCK_VECTORS 2
#else
#define BLOCK_ROWS 6
#define BLOCK_VECTORS 4
#endif
#define BLOCK_COLUMNS (BLOCK_VECTORS * WIDTH)

INLINE void block_of(int rows, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t depth, float *c, int64_t ldc, int add) {
  vfloat sums[BLOCK_ROWS][BLOCK_VECTORS];
  UNROLL for (int r = 0; r < rows; ++r)
    UNROLL for (int v = 0; v < BLOCK_VECTORS; ++v) sums[r][v] = add ? load(c + r * ldc + v * WIDTH) : splat(0);
  for (int64_t k = 0; k < depth; ++k) {
    vfloat right[BLOCK_VECTORS];
    UNROLL for (int v = 0; v < BLOCK_VECTORS; ++v) right[v] = load(b + k * ldb + v * WIDTH);
    UNROLL for (int r = 0; r < rows; ++r) {
      const vfloat left = splat(a[r * lda + k]);
      UNROLL for (int v = 0; v < BLOCK_VECTORS; ++v) sums[r][v] += left * right[v];
    }
  }
  UNROLL for (int r = 0; r < rows; ++r)
    UNROLL for (int v = 0; v < BLOCK_VECTORS; ++v) store(c + r * ldc + v * WIDTH, sums[r][v]);
}

/* Any number of rows. */
void block_rows(int64_t rows, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t depth, float *c, int64_t ldc, int add);

#endif
