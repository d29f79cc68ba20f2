/* Causal attention over the slots of a cache, softmax in one pass (Milakov and Gimelshein, 2018). */
#include <math.h>

#include "attention.h"
#include "block.h"

#define QUERIES 48    /* rows of one item: tokens times the query heads of one key head */
#define FEW_QUERIES 8 /* rows up to which keys are read as they lie */

INLINE int sees(const Item *item, int64_t token, int64_t slot) {
  return slot <= item->slot + token && (slot < item->view->front || slot >= first_seen(item, token));
}

/* scores[rows][KEYS] of the keys from `slot` on. */
static void score(const Item *item, const float *queries, int64_t rows, int64_t slot, int64_t count, float *turned, float *scores) {
  const int64_t dim = item->dim;
  const float *keys = item->keys + slot * dim;
  if (rows <= FEW_QUERIES) {
    int64_t first = 0;
#if WIDTH == 16
    for (; first + 16 <= count && dim % WIDTH == 0; first += 16)
      for (int64_t row = 0; row < rows; ++row) {
        vfloat parts[16];
        UNROLL for (int key = 0; key < 16; ++key) {
          parts[key] = splat(0);
          for (int64_t i = 0; i < dim; i += WIDTH) parts[key] += load(queries + row * dim + i) * load(keys + (first + key) * dim + i);
        }
        turn(parts);
        UNROLL for (int half = 8; half > 0; half /= 2)
          UNROLL for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
        store(scores + row * KEYS + first, parts[0]);
      }
#endif
    for (int64_t key = first; key < count; ++key)
      for (int64_t row = 0; row < rows; ++row) {
        vfloat total = splat(0);
        int64_t i = 0;
        for (; i + WIDTH <= dim; i += WIDTH) total += load(queries + row * dim + i) * load(keys + key * dim + i);
        float dot = sum(total);
        for (; i < dim; ++i) dot += queries[row * dim + i] * keys[key * dim + i];
        scores[row * KEYS + key] = dot;
      }
    return;
  }
  turn_rows(keys, dim, count, KEYS, dim, turned, KEYS);
  for (int64_t key = 0; key < KEYS; key += BLOCK_COLUMNS)
    block_rows(rows, queries, dim, turned + key, KEYS, dim, scores + key, KEYS, 0);
}

/* out[rows][dim] += weights[rows][KEYS] * values */
static void gather(const Item *item, const float *weights, int64_t rows, int64_t slot, int64_t count, float *out) {
  const int64_t dim = item->dim;
  const float *values = item->values + slot * dim;
  int64_t i = 0;
  if (rows > FEW_QUERIES || count > 8)
    for (; i + BLOCK_COLUMNS <= dim; i += BLOCK_COLUMNS) block_rows(rows, weights, KEYS, values + i, dim, count, out + i, dim, 1);
  for (; i < dim; ++i)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t key = 0; key < count; ++key) out[row * dim + i] += weights[row * KEYS + key] * values[key * dim + i];
}

void soften(const Item *item, int64_t row, int64_t slot, int64_t count, float *scores, float *most, float *total, float *out) {
  const int64_t token = row / item->group;
  const int whole = slot + count <= item->slot + token + 1 && slot >= first_seen(item, token);
  for (int64_t key = whole ? count : 0; key < KEYS; ++key)
    if (key >= count || !sees(item, token, slot + key)) scores[key] = -INFINITY;
  vfloat top = load(scores);
  for (int64_t key = WIDTH; key < KEYS; key += WIDTH) top = maximum(top, load(scores + key));
  const float now = fmaxf(*most, largest(top));
  if (now == -INFINITY) {
    memset(scores, 0, sizeof(float) * KEYS);
    return;
  }
  if (now > *most) {
    const float shrink = *most == -INFINITY ? 0 : expf(*most - now);
    *total *= shrink;
    for (int64_t i = 0; i < item->dim; ++i) out[i] *= shrink;
    *most = now;
  }
  vfloat sums = splat(0);
  for (int64_t key = 0; key < KEYS; key += WIDTH) {
    const vfloat difference = load(scores + key) - splat(now);
    const vint hidden = difference < splat(-87.0f);
    const vfloat weight = (vfloat)((vint)exponential(difference) & ~hidden);
    sums += weight;
    store(scores + key, weight);
  }
  *total += sum(sums);
}

static void attend_item(const Item *item, const float *queries, int64_t rows, float *out) {
  float scores[QUERIES * KEYS] __attribute__((aligned(64))), most[QUERIES], total[QUERIES];
  float *turned = pool_scratch(1, sizeof(float) * KEYS * (size_t)item->dim);
  for (int64_t row = 0; row < rows; ++row) most[row] = -INFINITY, total[row] = 0;
  memset(out, 0, sizeof(float) * (size_t)(rows * item->dim));
  int64_t slot = 0;
  for (int64_t count = next_keys(item, &slot); count > 0; count = next_keys(item, &slot)) {
    score(item, queries, rows, slot, count, turned, scores);
    for (int64_t row = 0; row < rows; ++row) soften(item, row, slot, count, scores + row * KEYS, most + row, total + row, out + row * item->dim);
    gather(item, scores, rows, slot, count, out);
    slot += count;
  }
  for (int64_t row = 0; row < rows; ++row) {
    const float share = 1 / total[row];
    for (int64_t i = 0; i < item->dim; ++i) out[row * item->dim + i] *= share;
  }
}

/* Whether tiles compute items of many rows. */
static int takes_tiles(const Layer *layer, const Pass *pass, int precision) {
#if defined(TILES)
  return precision == ROUNDED && pass->rows >= TILES_FROM && tiles_attend_dim(layer->head_dim) && tiles_are_there();
#else
  (void)pass, (void)precision, (void)layer;
  return 0;
#endif
}

/* out[rows, heads * dim] from queries in qkv and keys and values in the cache. */
void attend(Place place, const Layer *layer, const Pass *pass, int index, const float *qkv, float *out, int precision) {
  const View *view = pass->view + layer->view;
  const int64_t dim = layer->head_dim, group = layer->heads / layer->kv_heads;
  const int64_t line = (layer->heads + 2 * layer->kv_heads) * dim;
  const int tiles = takes_tiles(layer, pass, precision);
  const int64_t most = tiles ? TILE_QUERIES : QUERIES, tokens = most / group > 0 ? most / group : 1;
  float *queries = pool_scratch(0, sizeof(float) * 2 * (size_t)(tokens * group * dim)), *attended = queries + tokens * group * dim;
  int64_t number = pool_next(place), before = 0;
  for (int which = 0; which < pass->runs; ++which) {
    const Run *run = pass->run + which;
    const int64_t slots = view->slots[run->cache], blocks = (run->count + tokens - 1) / tokens;
    for (; number < before + blocks * layer->kv_heads; number = pool_next(place)) {
      /* The last tokens see the most: they come first. */
      const int64_t head = (number - before) % layer->kv_heads, block = blocks - 1 - (number - before) / layer->kv_heads;
      const int64_t first = block * tokens, count = run->count - first < tokens ? run->count - first : tokens;
      const int64_t place_of_head = (run->sequence * layer->kv_heads + head) * slots * dim;
      const Item item = {
        pass->keys[index * pass->caches + run->cache] + place_of_head,
        pass->values[index * pass->caches + run->cache] + place_of_head,
        dim, group, count, view->slot[which] + first, view,
      };
      for (int64_t token = 0; token < count; ++token)
        for (int64_t i = 0; i < group * dim; ++i)
          queries[token * group * dim + i] = qkv[(run->first + first + token) * line + head * group * dim + i] * layer->scale;
#if defined(TILES)
      if (tiles && count * group >= FEW_FOR_TILES)
        tiles_attend(&item, queries, count * group, attended);
      else
#endif
        attend_item(&item, queries, count * group, attended);
      for (int64_t token = 0; token < count; ++token)
        memcpy(out + ((run->first + first + token) * layer->heads + head * group) * dim, attended + token * group * dim,
               sizeof(float) * (size_t)(group * dim));
    }
    before += blocks * layer->kv_heads;
  }
  pool_barrier(place);
}
