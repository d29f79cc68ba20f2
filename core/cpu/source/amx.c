/* Products of many rows on processors with tiles (Intel AMX): bfloat16 numbers, float32 sums.

   Rows of weights are the left tiles; x is put in pairs of columns once for all, and what comes out is turned. */
#include "matrix.h"

#if defined(TILES)
#include <sys/syscall.h>
#include <unistd.h>

#include "tiles.h"

#define STRIP 32 /* rows of x that are held in tiles at once */

int tiles_begin(void) {
  return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
}

/* A strip of x: for each step, two tiles [16 pairs of columns][16 rows][2]. */
static int64_t strip_numbers(int64_t columns) { return steps(columns) * 2 * TILE * STEP; }

size_t tiled_bytes(int64_t m, int64_t columns) { return 2 * (size_t)((m + STRIP - 1) / STRIP * strip_numbers(columns)); }

void tile(const float *x, int64_t m, int64_t ldx, int64_t columns, void *tiled, int64_t part, int64_t parts) {
  const int64_t strips = (m + STRIP - 1) / STRIP, all = steps(columns), tiles = strips * 2;
  for (int64_t at = tiles * part / parts; at < tiles * (part + 1) / parts; ++at) {
    uint16_t *to = (uint16_t *)tiled + at / 2 * strip_numbers(columns) + at % 2 * TILE * STEP;
    for (int64_t step = 0; step < all; ++step, to += 2 * TILE * STEP) {
      const int64_t k = step * STEP;
      vfloat rows[TILE];
      UNROLL for (int i = 0; i < TILE; ++i) {
        const int64_t row = at * TILE + i;
        rows[i] = row < m ? (vfloat)line_of(x + row * ldx + k, columns - k) : splat(0);
      }
      turn(rows);
      UNROLL for (int i = 0; i < TILE; ++i) _mm512_storeu_ps(to + i * STEP, (__m512)rows[i]);
    }
  }
}

/* 32 numbers of 4 bits of one group, as 16 + 16 that follow each other. */
INLINE __m512i four_bits(const uint8_t *bytes, __m512 values, __m512 factor, __m512 offset) {
  const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  const __m512i places = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m512i words = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)bytes));
  const __m512i low = _mm512_permutexvar_epi32(places, words);
  const __m512i high = _mm512_permutexvar_epi32(_mm512_add_epi32(places, _mm512_set1_epi32(2)), words);
  /* The lowest 4 bits say which of the values. */
  const __m512 first = _mm512_permutexvar_ps(_mm512_srlv_epi32(low, shifts), values);
  const __m512 second = _mm512_permutexvar_ps(_mm512_srlv_epi32(high, shifts), values);
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_fmadd_ps(second, factor, offset), _mm512_fmadd_ps(first, factor, offset));
}

INLINE __m512i eight_bits(const uint8_t *bytes, __m512 factor, __m512 offset) {
  const __m512 first = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes)));
  const __m512 second = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes + 1)));
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_fmadd_ps(second, factor, offset), _mm512_fmadd_ps(first, factor, offset));
}

/* A row of numbers of 4 or 8 bits, whose groups have whole lines. */
INLINE void packed_row(const Matrix *a, const uint8_t *bytes, int64_t at, int bits, uint16_t *to) {
  const __m512 values = _mm512_loadu_ps(a->type == MXFP4 ? MXFP4_VALUES : INTEGERS);
  const int64_t groups = a->columns / a->group, lines = a->group / STEP;
  const int type = a->type == MXFP4 ? MXFP4 : a->scale_type;
  for (int64_t group = 0; group < groups; ++group) {
    const __m512 factor = _mm512_set1_ps(scale_at(a->scales, type, at + group));
    const __m512 offset = a->biases == NULL ? _mm512_setzero_ps() : _mm512_set1_ps(scale_at(a->biases, type, at + group));
    for (int64_t line = 0; line < lines; ++line, bytes += STEP * bits / 8, to += 2 * TILE * STEP)
      _mm512_storeu_si512(to, bits == 4 ? four_bits(bytes, values, factor, offset) : eight_bits(bytes, factor, offset));
  }
}

/* A row of weights as bfloat16, a line of STEP numbers for each step. */
static void weight_lines(const Matrix *a, int64_t expert, int64_t row, uint16_t *to) {
  const int64_t all = steps(a->columns), whole = a->columns / STEP, apart = 2 * TILE * STEP;
  const uint8_t *bytes = weight_row(a, expert, row);
  if (a->type == BFLOAT16) {
    const uint16_t *from = (const uint16_t *)bytes;
    for (int64_t step = 0; step < whole; ++step) _mm512_storeu_si512(to + step * apart, _mm512_loadu_si512(from + step * STEP));
    const __mmask32 rest = (1u << (a->columns - whole * STEP)) - 1;
    if (whole < all) _mm512_storeu_si512(to + whole * apart, _mm512_maskz_loadu_epi16(rest, from + whole * STEP));
  } else if (a->type >= AFFINE && (a->bits == 4 || a->bits == 8) && whole == all) {
    const int64_t at = (expert * a->rows + row) * (a->columns / a->group);
    if (a->bits == 4)
      packed_row(a, bytes, at, 4, to);
    else
      packed_row(a, bytes, at, 8, to);
  } else {
    float *numbers = pool_scratch(2, sizeof(float) * (size_t)a->columns);
    unpack(a, expert, row, 0, a->columns, numbers);
    for (int64_t step = 0; step < all; ++step)
      _mm512_storeu_si512(to + step * apart, line_of(numbers + step * STEP, a->columns - step * STEP));
  }
}

/* A panel of 2 * TILE rows of weights as bfloat16, [steps][row][STEP], so that tiles are read one after the other: those
   from `first` on, and the `second` ones after TILE of them. */
static void panel_of(const Product *p, int64_t first, int64_t second, int64_t rows, uint16_t *out) {
  const int64_t all = steps(p->matrix->columns);
  for (int64_t i = 0; i < 2 * TILE; ++i) {
    const int64_t row = i < TILE ? first + i : second + i - TILE;
    if (row < rows)
      weight_lines(p->matrix, p->expert, row, out + i * STEP);
    else
      for (int64_t step = 0; step < all; ++step) memset(out + (step * 2 * TILE + i) * STEP, 0, 2 * STEP);
  }
}

/* A tile of sums [TILE rows of weights][TILE rows of x] turned, with the bias. */
INLINE void read_sums(const Product *p, const float *tile, int64_t row, __mmask16 mask, vfloat sums[TILE]) {
  UNROLL for (int i = 0; i < TILE; ++i) sums[i] = load(tile + i * TILE);
  turn(sums);
  if (p->matrix->bias == NULL) return;
  const vfloat bias = (vfloat)_mm512_maskz_loadu_ps(mask, p->matrix->bias + row);
  UNROLL for (int i = 0; i < TILE; ++i) sums[i] += bias;
}

/* Puts a tile of sums where it belongs in y. */
static void put(const Product *p, const float *tile, int64_t row, int64_t at, int64_t count, enum How how) {
  const __mmask16 mask = first_of(p->matrix->rows - row);
  vfloat sums[TILE];
  read_sums(p, tile, row, mask, sums);
  UNROLL for (int i = 0; i < TILE; ++i) {
    if (i >= count) break;
    float *to = p->y + (at + i) * p->ldy + row;
    if (how == ADD) sums[i] += (vfloat)_mm512_maskz_loadu_ps(mask, to);
    _mm512_mask_storeu_ps(to, mask, (__m512)sums[i]);
  }
}

/* The same for silu(gate) * up. */
static void put_gated(const Product *p, const float *gates, const float *ups, int64_t row, int64_t at, int64_t count) {
  vfloat gate[TILE], up[TILE];
  read_sums(p, gates, row, 0xffff, gate);
  read_sums(p, ups, row + p->matrix->rows / 2, 0xffff, up);
  for (int i = 0; i < TILE && i < count; ++i) store(p->y + (at + i) * p->ldy + row, silu(gate[i]) * up[i]);
}

/* sums[4 tiles] of a panel's rows by a strip of x: its first and second TILE rows by those of x. */
INLINE void multiply_tiles(const uint16_t *left, const uint16_t *right, int64_t all, int64_t count, float *sums) {
  tiles_read(left);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < all; ++step, left += 2 * TILE * STEP, right += 2 * TILE * STEP) {
    _tile_loadd(4, left, 64);
    _tile_loadd(5, left + TILE * STEP, 64);
    _tile_loadd(6, right, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if (count > TILE) {
      _tile_loadd(7, right + TILE * STEP, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums + 0 * TILE * TILE, 64);
  _tile_stored(1, sums + 1 * TILE * TILE, 64);
  _tile_stored(2, sums + 2 * TILE * TILE, 64);
  _tile_stored(3, sums + 3 * TILE * TILE, 64);
}

void tile_rows(const Product *p, int64_t first, int64_t last, const void *tiled, enum How how) {
  const Matrix *a = p->matrix;
  /* The panels of GATE are TILE rows of gate and as many of up. */
  const int64_t all = steps(a->columns), numbers = all * 2 * TILE * STEP, outputs = how == GATE ? TILE : 2 * TILE;
  const int64_t panels = (last - first + outputs - 1) / outputs;
  uint16_t *made = pool_scratch(0, sizeof(uint16_t) * (size_t)(panels * numbers));
  float sums[4 * TILE * TILE] __attribute__((aligned(64)));
  for (int64_t i = 0; i < panels; ++i) {
    const int64_t row = first + i * outputs;
    panel_of(p, row, row + (how == GATE ? a->rows / 2 : TILE), a->rows, made + i * numbers);
  }
  tiles_configure();
  for (int64_t at = 0; at < p->m; at += STRIP) {
    const int64_t count = p->m - at < STRIP ? p->m - at : STRIP;
    for (int64_t i = 0; i < panels; ++i) {
      multiply_tiles(made + i * numbers, (const uint16_t *)tiled + at / STRIP * strip_numbers(a->columns), all, count, sums);
      for (int half = 0; half < 2 && half * TILE < count; ++half) {
        const float *upper = sums + half * TILE * TILE, *lower = upper + 2 * TILE * TILE;
        const int64_t row = first + i * outputs, to = at + half * TILE, left = count - half * TILE;
        if (how == GATE) {
          put_gated(p, upper, lower, row, to, left);
        } else {
          put(p, upper, row, to, left, how);
          if (row + TILE < a->rows) put(p, lower, row + TILE, to, left, how);
        }
      }
    }
  }
  _tile_release();
}
#endif
