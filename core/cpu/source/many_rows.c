/* Products of many rows in float32: a panel of weights becomes floats once, and every row of x meets it in the cache. */
#include "block.h"
#include "matrix.h"

#define DEPTH 256 /* columns of a panel: 32 KB of floats */

/* numbers[PANEL][count] → panel[count][PANEL]; rows at and beyond `rows` become zeros. */
static void transpose(const float *numbers, int64_t rows, int64_t count, float *panel) {
#if WIDTH == 16
  const __m512i lines = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32((int)count));
  if (rows == PANEL) {
    for (int64_t k = 0; k < count; ++k)
      for (int half = 0; half < 2; ++half)
        _mm512_storeu_ps(panel + k * PANEL + half * 16, _mm512_i32gather_ps(lines, numbers + half * 16 * count + k, 4));
    return;
  }
#endif
  for (int64_t k = 0; k < count; ++k)
    for (int64_t row = 0; row < PANEL; ++row) panel[k * PANEL + row] = row < rows ? numbers[row * count + k] : 0;
}

void many_rows(const Product *p, int64_t first, int64_t last, int add) {
  const Matrix *a = p->matrix;
  float *panel = pool_scratch(0, sizeof(float) * 2 * PANEL * DEPTH), *numbers = panel + PANEL * DEPTH;
  float *results = pool_scratch(1, sizeof(float) * PANEL * (size_t)p->m);
  for (int64_t row = first; row < last; row += PANEL) {
    const int64_t rows = last - row < PANEL ? last - row : PANEL;
    for (int64_t k = 0; k < a->columns; k += DEPTH) {
      const int64_t count = a->columns - k < DEPTH ? a->columns - k : DEPTH;
      for (int64_t i = 0; i < rows; ++i) unpack(a, p->expert, row + i, k, count, numbers + i * count);
      transpose(numbers, rows, count, panel);
      for (int64_t column = 0; column < PANEL; column += BLOCK_COLUMNS)
        block_rows(p->m, p->x + k, p->ldx, panel + column, PANEL, count, results + column, PANEL, k > 0);
    }
    for (int64_t i = 0; i < p->m; ++i) {
      float *to = p->y + i * p->ldy + row;
      const float *from = results + i * PANEL;
      for (int64_t j = 0; j < rows; ++j) to[j] = from[j] + (a->bias != NULL ? a->bias[row + j] : 0) + (add ? to[j] : 0);
    }
  }
}
