/* One item of attention: some tokens' query heads of one key head. */
#ifndef CORELM_ATTENTION_H
#define CORELM_ATTENTION_H

#include "model.h"

#define KEYS 64 /* that are looked at together */

typedef struct {
  const float *keys, *values; /* [slots, dim] of one head */
  int64_t dim, group, tokens; /* query heads of the key head, and tokens of the item */
  int64_t slot;               /* of the item's first token */
  const View *view;
} Item;

/* The first of the recent slots that a token may see. */
INLINE int64_t first_seen(const Item *item, int64_t token) {
  const int64_t slot = item->slot + token;
  if (item->view->recent == 0 || slot + 1 <= item->view->recent) return 0;
  return slot + 1 - item->view->recent;
}

/* How many keys to look at together from *slot on, which moves to the first that some token sees; 0 after the last. */
INLINE int64_t next_keys(const Item *item, int64_t *slot) {
  const int64_t end = item->slot + item->tokens, begin = first_seen(item, 0);
  if (*slot >= item->view->front && *slot < begin) *slot = begin;
  const int64_t stop = *slot < item->view->front && item->view->front < begin ? item->view->front : end;
  return stop - *slot < KEYS ? stop - *slot : KEYS;
}

/* For a row of scores[KEYS] from `slot` on, of which `count` exist: hides what it may not see, turns scores into weights,
   and scales what was gathered so far. */
void soften(const Item *item, int64_t row, int64_t slot, int64_t count, float *scores, float *most, float *total, float *out);

#define TILE_QUERIES 128 /* rows of one item of tiles */
#define FEW_FOR_TILES 16 /* rows below which an item is computed in float32 */

#if defined(TILES)
int tiles_attend_dim(int64_t dim);
/* queries[rows, dim], scaled, to out[rows, dim]; numbers are rounded to bfloat16, sums and the softmax are float32. */
void tiles_attend(const Item *item, const float *queries, int64_t rows, float *out);
#endif

#endif
