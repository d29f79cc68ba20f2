/* Tiles of Intel AMX: 16 rows of 64 bytes, which are 32 numbers of bfloat16 or 16 of float32. */
#ifndef CORELM_TILES_H
#define CORELM_TILES_H

#include "vectors.h"

#define TILE 16 /* rows of a tile */
#define STEP 32 /* numbers in bfloat16 of its rows */

/* All eight tiles in full size, for this thread until it releases them. */
INLINE void tiles_configure(void) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } __attribute__((packed)) shape = {.palette = 1};
  for (int i = 0; i < 8; ++i) shape.bytes[i] = 64, shape.rows[i] = TILE;
  __asm__ volatile("" : : "r"(&shape) : "memory"); /* GCC 12 does not see that all of it is read */
  _tile_loadconfig(&shape);
}

/* What was written there is read by tiles: GCC 12 does not see that they read memory. */
INLINE void tiles_read(const void *memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

INLINE int64_t steps(int64_t columns) { return (columns + STEP - 1) / STEP; }

INLINE __mmask16 first_of(int64_t left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1); }

/* A line of 32 numbers in bfloat16, of which `left` exist. */
INLINE __m512i line_of(const float *x, int64_t left) {
  const __m512 low = _mm512_maskz_loadu_ps(first_of(left), x), high = _mm512_maskz_loadu_ps(first_of(left - 16), x + 16);
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

#endif
