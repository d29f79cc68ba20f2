/* Products of many rows in float32: a panel of weights becomes floats once, and every row of x meets it in the cache. */
#include "block.h"
#include "matrix.h"

#define DEPTH 256 /* columns of a panel: 32 KB of floats */

void many_rows(const Product *p, int64_t first, int64_t last, int add) {
  const Matrix *a = p->matrix;
  float *panel = pool_scratch(0, sizeof(float) * 2 * PANEL * DEPTH), *numbers = panel + PANEL * DEPTH;
  float *results = pool_scratch(1, sizeof(float) * PANEL * (size_t)p->m);
  for (int64_t row = first; row < last; row += PANEL) {
    const int64_t rows = last - row < PANEL ? last - row : PANEL;
    for (int64_t k = 0; k < a->columns; k += DEPTH) {
      const int64_t count = a->columns - k < DEPTH ? a->columns - k : DEPTH;
      for (int64_t i = 0; i < rows; ++i) unpack(a, p->expert, row + i, k, count, numbers + i * count);
      turn_rows(numbers, count, rows, PANEL, count, panel, PANEL);
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
