/* Products of many rows on processors with tiles (Intel AMX): bfloat16 numbers, float32 sums.

   Rows of weights are the left tiles, as they lie where they are bfloat16; x is put in pairs of columns once for all. */
#include "matrix.h"

#if defined(TILES)
#include <sys/syscall.h>
#include <unistd.h>

#define TILE 16                        /* rows of a tile */
#define STEP 32                        /* columns of a step, in bfloat16: 64 bytes */
#define STRIP 32                       /* rows of x that are held in tiles at once */

int tiles_begin(void) {
  return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
}

static void configure(void) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } __attribute__((packed)) shape = {.palette = 1};
  for (int i = 0; i < 8; ++i) shape.bytes[i] = 64, shape.rows[i] = TILE;
  __asm__ volatile("" : : "r"(&shape) : "memory"); /* GCC 12 does not see that all of it is read */
  _tile_loadconfig(&shape);
}

static int64_t steps(int64_t columns) { return (columns + STEP - 1) / STEP; }

/* A strip of x: for each step, two tiles [16 pairs of columns][16 rows][2]. */
static int64_t strip_numbers(int64_t columns) { return steps(columns) * 2 * TILE * STEP; }

size_t tiled_bytes(int64_t m, int64_t columns) { return 2 * (size_t)((m + STRIP - 1) / STRIP * strip_numbers(columns)); }

INLINE __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

void tile(const float *x, int64_t m, int64_t ldx, int64_t columns, void *tiled, int64_t part, int64_t parts) {
  const int64_t strips = (m + STRIP - 1) / STRIP, all = steps(columns);
  for (int64_t strip = strips * part / parts; strip < strips * (part + 1) / parts; ++strip) {
    uint32_t *to = (uint32_t *)((uint16_t *)tiled + strip * strip_numbers(columns));
    for (int64_t row = 0; row < STRIP; ++row) {
      const int64_t from = strip * STRIP + row;
      for (int64_t step = 0; step < all; ++step) {
        uint32_t pairs[STEP / 2];
        for (int64_t half = 0; half < 2; ++half) {
          const int64_t k = step * STEP + 16 * half, left = from < m ? columns - k : 0;
          const __mmask16 mask = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
          const __m512 numbers = _mm512_maskz_loadu_ps(mask, x + (mask ? from * ldx + k : 0));
          _mm256_storeu_si256((__m256i *)(pairs + 8 * half), rounded(numbers));
        }
        uint32_t *at = to + (step * 2 + row / TILE) * (TILE * STEP / 2) + row % TILE;
        for (int pair = 0; pair < STEP / 2; ++pair) at[pair * TILE] = pairs[pair];
      }
    }
  }
}

/* Rows of weights as bfloat16, [2 * TILE][columns padded to steps]. */
static void weights(const Product *p, int64_t row, int64_t rows, uint16_t *out) {
  const Matrix *a = p->matrix;
  const int64_t line = steps(a->columns) * STEP;
  float *numbers = pool_scratch(2, sizeof(float) * (size_t)line);
  for (int64_t i = 0; i < 2 * TILE; ++i) {
    if (i < rows)
      unpack(a, p->expert, row + i, 0, a->columns, numbers);
    else
      memset(numbers, 0, sizeof(float) * (size_t)line);
    for (int64_t k = a->columns; k < line; ++k) numbers[k] = 0;
    for (int64_t k = 0; k < line; k += 16) _mm256_storeu_si256((__m256i *)(out + i * line + k), rounded(_mm512_loadu_ps(numbers + k)));
  }
}

/* sums[STRIP rows of x][2 * TILE rows of weights], from the four tiles that hold them the other way round. */
static void turn(const float *tiles, float *sums) {
  const __m512i lines = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(TILE));
  for (int row = 0; row < STRIP; ++row)
    for (int half = 0; half < 2; ++half)
      _mm512_storeu_ps(sums + row * STRIP + half * TILE, _mm512_i32gather_ps(lines, tiles + (half * 2 + row / TILE) * TILE * TILE + row % TILE, 4));
}

void tile_rows(const Product *p, int64_t first, int64_t last, const void *tiled, int add) {
  const Matrix *a = p->matrix;
  const int64_t all = steps(a->columns), line = all * STEP, bytes = 2 * line;
  const int direct = a->type == BFLOAT16 && a->columns % STEP == 0;
  uint16_t *made = pool_scratch(0, sizeof(uint16_t) * 2 * TILE * (size_t)line);
  float tiles[4 * TILE * TILE] __attribute__((aligned(64))), sums[STRIP * STRIP] __attribute__((aligned(64)));
  configure();
  for (int64_t row = first; row < last; row += 2 * TILE) {
    const int64_t rows = last - row < 2 * TILE ? last - row : 2 * TILE;
    const uint16_t *left = made;
    if (direct && rows == 2 * TILE)
      left = (const uint16_t *)weight_row(a, p->expert, row);
    else
      weights(p, row, rows, made);
    for (int64_t strip = 0; strip * STRIP < p->m; ++strip) {
      const uint16_t *right = (const uint16_t *)tiled + strip * strip_numbers(a->columns);
      const int64_t count = p->m - strip * STRIP < STRIP ? p->m - strip * STRIP : STRIP;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t step = 0; step < all; ++step, right += 2 * TILE * STEP) {
        _tile_loadd(4, left + step * STEP, bytes);
        _tile_loadd(5, left + TILE * line + step * STEP, bytes);
        _tile_loadd(6, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        if (count > TILE) {
          _tile_loadd(7, right + TILE * STEP, 64);
          _tile_dpbf16ps(1, 4, 7);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
      _tile_stored(0, tiles + 0 * TILE * TILE, 64);
      _tile_stored(1, tiles + 1 * TILE * TILE, 64);
      _tile_stored(2, tiles + 2 * TILE * TILE, 64);
      _tile_stored(3, tiles + 3 * TILE * TILE, 64);
      turn(tiles, sums);
      for (int64_t i = 0; i < count; ++i) {
        float *to = p->y + (strip * STRIP + i) * p->ldy + row;
        for (int64_t j = 0; j < rows; ++j) to[j] = sums[i * STRIP + j] + (a->bias != NULL ? a->bias[row + j] : 0) + (add ? to[j] : 0);
      }
    }
  }
  _tile_release();
}
#endif
