/* Attention of many queries on processors with tiles (Intel AMX). */
#include <math.h>

#include "attention.h"

#if defined(TILES)
#include "tiles.h"

#define NUMBERS (TILE * STEP) /* of a tile in bfloat16 */
#define MOST_DIM 256

int tiles_attend_dim(int64_t dim) { return dim % STEP == 0 && dim <= MOST_DIM; }

/* to[rows / TILE][columns / STEP] tiles of rows in bfloat16; rows at and beyond `count` are zeros. */
static void tile_queries(const float *from, int64_t count, int64_t dim, uint16_t *to) {
  for (int64_t row = 0; row < (count + TILE - 1) / TILE * TILE; ++row)
    for (int64_t k = 0; k < dim; k += STEP) {
      uint16_t *line = to + (row / TILE * (dim / STEP) + k / STEP) * NUMBERS + row % TILE * STEP;
      _mm512_storeu_si512(line, row < count ? line_of(from + row * dim + k, STEP) : _mm512_setzero_si512());
    }
}

/* to[KEYS / TILE][dim / STEP] tiles [pairs of columns][keys][2]. */
static void tile_keys(const float *keys, int64_t count, int64_t dim, uint16_t *to) {
  for (int64_t key = 0; key < KEYS; key += TILE)
    for (int64_t k = 0; k < dim; k += STEP, to += NUMBERS) {
      vfloat lines[TILE];
      UNROLL for (int i = 0; i < TILE; ++i)
        lines[i] = key + i < count ? (vfloat)line_of(keys + (key + i) * dim + k, STEP) : splat(0);
      turn(lines);
      UNROLL for (int i = 0; i < TILE; ++i) store((float *)to + i * TILE, lines[i]);
    }
}

/* to[KEYS / STEP][dim / TILE] tiles [pairs of keys][columns][2]. */
static void tile_values(const float *values, int64_t count, int64_t dim, uint16_t *to) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                         20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t key = 0; key < KEYS; key += 2)
    for (int64_t i = 0; i < dim; i += TILE) {
      const __m512 even = key < count ? _mm512_loadu_ps(values + key * dim + i) : _mm512_setzero_ps();
      const __m512 odd = key + 1 < count ? _mm512_loadu_ps(values + (key + 1) * dim + i) : _mm512_setzero_ps();
      uint16_t *line = to + (key / STEP * (dim / TILE) + i / TILE) * NUMBERS + key % STEP / 2 * STEP;
      _mm512_storeu_si512(line, _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even)));
    }
}

/* scores[TILE][KEYS] of a tile's rows of queries. */
static void score(const uint16_t *queries, const uint16_t *keys, int64_t all, float *scores) {
  tiles_read(queries);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < all; ++step) {
    _tile_loadd(4, queries + step * NUMBERS, 64);
    _tile_loadd(5, keys + step * NUMBERS, 64);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, keys + (all + step) * NUMBERS, 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(5, keys + (2 * all + step) * NUMBERS, 64);
    _tile_dpbf16ps(2, 4, 5);
    _tile_loadd(6, keys + (3 * all + step) * NUMBERS, 64);
    _tile_dpbf16ps(3, 4, 6);
  }
  _tile_stored(0, scores, 4 * KEYS);
  _tile_stored(1, scores + TILE, 4 * KEYS);
  _tile_stored(2, scores + 2 * TILE, 4 * KEYS);
  _tile_stored(3, scores + 3 * TILE, 4 * KEYS);
}

/* out[TILE][dim] += weights[TILE][KEYS] * values */
static void gather(const uint16_t *weights, const uint16_t *values, int64_t dim, float *out) {
  const int64_t tiles = dim / TILE;
  tiles_read(weights);
  _tile_loadd(4, weights, 64);
  _tile_loadd(5, weights + NUMBERS, 64);
  for (int64_t i = 0; i < tiles; i += 2) {
    _tile_loadd(0, out + i * TILE, 4 * dim);
    _tile_loadd(1, out + (i + 1) * TILE, 4 * dim);
    _tile_loadd(6, values + i * NUMBERS, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, values + (i + 1) * NUMBERS, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, values + (tiles + i) * NUMBERS, 64);
    _tile_dpbf16ps(0, 5, 6);
    _tile_loadd(7, values + (tiles + i + 1) * NUMBERS, 64);
    _tile_dpbf16ps(1, 5, 7);
    _tile_stored(0, out + i * TILE, 4 * dim);
    _tile_stored(1, out + (i + 1) * TILE, 4 * dim);
  }
}

void tiles_attend(const Item *item, const float *queries, int64_t rows, float *out) {
  const int64_t dim = item->dim, all = dim / STEP, tiles = (rows + TILE - 1) / TILE, padded = tiles * TILE;
  float scores[TILE * KEYS] __attribute__((aligned(64)));
  uint16_t weights[TILE * KEYS] __attribute__((aligned(64)));
  const size_t sizes[] = {2 * (size_t)(padded * dim), 2 * (size_t)(KEYS * dim), 2 * (size_t)(KEYS * dim), 4 * (size_t)(padded * dim), 8 * (size_t)padded};
  uint8_t *memory = pool_scratch(1, sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4]);
  uint16_t *left = (uint16_t *)memory, *keys = left + padded * dim, *values = keys + KEYS * dim;
  float *gathered = (float *)(values + KEYS * dim), *most = gathered + padded * dim, *total = most + padded;
  tile_queries(queries, rows, dim, left);
  memset(gathered, 0, sizes[3]);
  for (int64_t row = 0; row < padded; ++row) most[row] = -INFINITY, total[row] = 0;
  tiles_configure();
  int64_t slot = 0;
  for (int64_t count = next_keys(item, &slot); count > 0; count = next_keys(item, &slot)) {
    tile_keys(item->keys + slot * dim, count, dim, keys);
    tile_values(item->values + slot * dim, count, dim, values);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t last = tile * TILE + TILE < rows ? tile * TILE + TILE : rows;
      if (slot > item->slot + (last - 1) / item->group) continue; /* these see none of the keys */
      score(left + tile * TILE * dim, keys, all, scores);
      for (int64_t row = tile * TILE; row < last; ++row)
        soften(item, row, slot, count, scores + row % TILE * KEYS, most + row, total + row, gathered + row * dim);
      for (int64_t i = 0; i < TILE; ++i)
        for (int64_t key = 0; key < KEYS; key += STEP)
          _mm512_store_si512(weights + key / STEP * NUMBERS + i * STEP, line_of(scores + i * KEYS + key, STEP));
      gather(weights, values, dim, gathered + tile * TILE * dim);
    }
    slot += count;
  }
  _tile_release();
  for (int64_t row = 0; row < rows; ++row) {
    const vfloat share = splat(1 / total[row]);
    for (int64_t i = 0; i < dim; i += WIDTH) store(out + row * dim + i, load(gathered + row * dim + i) * share);
  }
}
#endif
