/* Which way a product is computed, and how its rows of weights are shared out to the team. */
#include <stdlib.h>

#include "matrix.h"

#define SHARE 32     /* columns of y of an item */
#define MOST_SHARE 128 /* of an item of tiles, so that x is read less often */
#define KEPT ((size_t)64 << 20) /* bytes for x in order that are kept between calls */

#if defined(TILES)
/* The system is asked once. */
int tiles_are_there(void) {
  static int known = -1;
  if (known < 0) known = tiles_begin();
  return known;
}
#endif

enum Way { FEW_ROWS, MANY_ROWS, TILE_ROWS };

static enum Way way_of(const Product *p, int precision) {
  (void)precision;
  if (p->m <= FEW) return FEW_ROWS;
#if defined(TILES)
  if (precision == ROUNDED && p->m >= TILES_FROM && tiles_are_there()) return TILE_ROWS;
#endif
  return MANY_ROWS;
}

/* Bytes in which x is put in order. */
static size_t bytes_of(const Product *p, int precision) {
  switch (way_of(p, precision)) {
    case FEW_ROWS: return (ordered_bytes(p->matrix, p->m, precision) + 63) & ~(size_t)63;
#if defined(TILES)
    case TILE_ROWS: return tiled_bytes(p->m, p->matrix->columns);
#endif
    default: return 0;
  }
}

static void *shared; /* x in order, for all products of a call; only one task runs at a time */
static size_t shared_size;

/* Gives back what a large product took. Not called while a task runs. */
void multiply_end(void) {
  if (shared_size <= KEPT) return;
  free(shared);
  shared = NULL;
  shared_size = 0;
}

int takes_gates(const Product *products, int count, int precision) {
  for (int i = 0; i < count; ++i)
    if (way_of(products + i, precision) != TILE_ROWS || products[i].matrix->rows % 32) return 0;
  return 1;
}

/* Columns of y. */
static int64_t outputs_of(const Product *p, enum How how) { return how == GATE ? p->matrix->rows / 2 : p->matrix->rows; }

/* Columns of y of an item. */
static int64_t share_of(const Product *p, enum Way way, enum How how, int team) {
  int64_t share = SHARE;
  if (way == TILE_ROWS)
    while (share < MOST_SHARE && outputs_of(p, how) >= 8 * share * team) share *= 2;
  return share;
}

void multiply(Place place, const Product *products, int count, enum How how, int precision) {
  static size_t starts[MOST_PRODUCTS];
  if (place.index == 0) {
    size_t size = 0;
    for (int i = 0; i < count; ++i) {
      starts[i] = size;
      size += bytes_of(products + i, precision);
    }
    if (size > shared_size) {
      free(shared);
      shared_size = size;
      shared = take_memory(&shared_size);
    }
  }
  pool_barrier(place);
  for (int i = 0; i < count; ++i) {
    const Product *p = products + i;
    uint8_t *ordered = (uint8_t *)shared + starts[i];
    switch (way_of(p, precision)) {
      case FEW_ROWS:
        put_in_order(p->matrix, p->x, p->m, p->ldx, precision, ordered, place);
        break;
#if defined(TILES)
      case TILE_ROWS:
        tile(p->x, p->m, p->ldx, p->matrix->columns, ordered, place.index, place.count);
        break;
#endif
      default: break;
    }
  }
  pool_barrier(place);
  int64_t item = pool_next(place), before = 0;
  for (int i = 0; i < count; ++i) {
    const Product *p = products + i;
    const void *ordered = (const uint8_t *)shared + starts[i];
    const enum Way way = way_of(p, precision);
    const int64_t outputs = outputs_of(p, how), share = share_of(p, way, how, place.count), items = (outputs + share - 1) / share;
    for (; item < before + items; item = pool_next(place)) {
      const int64_t first = (item - before) * share;
      const int64_t last = first + share < outputs ? first + share : outputs;
      switch (way) {
        case FEW_ROWS: few_rows(p, first, last, ordered, how == ADD, precision); break;
#if defined(TILES)
        case TILE_ROWS: tile_rows(p, first, last, ordered, how); break;
#endif
        default: many_rows(p, first, last, how == ADD);
      }
    }
    before += items;
  }
  pool_barrier(place);
}
