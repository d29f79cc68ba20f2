/* The inner loop of dense products, compiled for each number of rows. */
#include "block.h"

typedef void (*Block)(const float *, int64_t, const float *, int64_t, int64_t, float *, int64_t, int);

#define ROWS(N)                                                                                                    \
  static __attribute__((noinline)) void block_##N(const float *a, int64_t lda, const float *b, int64_t ldb,        \
                                                  int64_t depth, float *c, int64_t ldc, int add) {                 \
    if (add)                                                                                                       \
      block_of(N, a, lda, b, ldb, depth, c, ldc, 1);                                                               \
    else                                                                                                           \
      block_of(N, a, lda, b, ldb, depth, c, ldc, 0);                                                               \
  }
ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if BLOCK_ROWS == 12
ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif

static const Block BLOCKS[] = {block_1, block_2, block_3, block_4,  block_5,  block_6,
#if BLOCK_ROWS == 12
                               block_7, block_8, block_9, block_10, block_11, block_12
#endif
};

void block_rows(int64_t rows, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t depth, float *c, int64_t ldc, int add) {
  for (int64_t row = 0; row < rows; row += BLOCK_ROWS) {
    const int64_t count = rows - row < BLOCK_ROWS ? rows - row : BLOCK_ROWS;
    BLOCKS[count - 1](a + row * lda, lda, b, ldb, depth, c + row * ldc, ldc, add);
  }
}
