/* What happens between products: norms, rotation, the gate. Rows or heads are shared out; a barrier ends each part. */
#include <math.h>

#include "model.h"

/* The part of `all` that is this thread's. */
#define MINE(all, first, last) \
  const int64_t first = (all) * place.index / place.count, last = (all) * (place.index + 1) / place.count

void rms_norm(Place place, const float *x, const float *weight, float epsilon, int64_t rows, int64_t columns, float *y) {
  MINE(rows, first, last);
  for (int64_t row = first; row < last; ++row) {
    const float *from = x + row * columns;
    float *to = y + row * columns;
    vfloat squares = splat(0);
    int64_t i = 0;
    for (; i + WIDTH <= columns; i += WIDTH) squares += load(from + i) * load(from + i);
    float total = sum(squares);
    for (; i < columns; ++i) total += from[i] * from[i];
    const float factor = 1 / sqrtf(total / (float)columns + epsilon);
    for (i = 0; i < columns; ++i) to[i] = from[i] * factor * weight[i];
  }
  pool_barrier(place);
}

void make_rotations(Place place, const Pass *pass) {
  for (int which = 0; which < pass->rotations; ++which) {
    Rotation *rotation = pass->rotation + which;
    const int64_t pairs = rotation->dims / 2;
    MINE(pass->rows, first, last);
    for (int64_t row = first; row < last; ++row)
      for (int64_t i = 0; i < pairs; ++i) {
        const float angle = (float)pass->positions[row] * rotation->frequencies[i];
        rotation->cosines[row * pairs + i] = cosf(angle) * rotation->factor;
        rotation->sines[row * pairs + i] = sinf(angle) * rotation->factor;
      }
  }
  pool_barrier(place);
}

static void rotate(const Rotation *rotation, int64_t row, float *head) {
  const int64_t pairs = rotation->dims / 2, apart = rotation->traditional ? 1 : pairs, next = rotation->traditional ? 2 : 1;
  const float *cosines = rotation->cosines + row * pairs, *sines = rotation->sines + row * pairs;
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = head[i * next], b = head[i * next + apart];
    head[i * next] = a * cosines[i] - b * sines[i];
    head[i * next + apart] = a * sines[i] + b * cosines[i];
  }
}

/* Rotates queries and keys where they lie, and copies keys and values to the cache. */
void rotate_and_store(Place place, const Layer *layer, const Pass *pass, int index, float *qkv) {
  const Rotation *rotation = pass->rotation + layer->rotation;
  const View *view = pass->view + layer->view;
  const int64_t dim = layer->head_dim, line = (layer->heads + 2 * layer->kv_heads) * dim;
  for (int which = 0; which < pass->runs; ++which) {
    const Run *run = pass->run + which;
    const int64_t slots = view->slots[run->cache];
    float *keys = pass->keys[index * pass->caches + run->cache] + run->sequence * layer->kv_heads * slots * dim;
    float *values = pass->values[index * pass->caches + run->cache] + run->sequence * layer->kv_heads * slots * dim;
    MINE(run->count, first, last);
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = run->first + i, slot = view->slot[which] + i;
      float *from = qkv + row * line;
      for (int64_t head = 0; head < layer->heads + layer->kv_heads; ++head) rotate(rotation, row, from + head * dim);
      from += layer->heads * dim;
      for (int64_t head = 0; head < layer->kv_heads; ++head) {
        memcpy(keys + (head * slots + slot) * dim, from + head * dim, sizeof(float) * (size_t)dim);
        memcpy(values + (head * slots + slot) * dim, from + (layer->kv_heads + head) * dim, sizeof(float) * (size_t)dim);
      }
    }
  }
  pool_barrier(place);
}

/* y = silu(gate) * up, of rows [gate, up] (Shazeer, 2020). */
void gated(Place place, const float *gate_up, int64_t rows, int64_t columns, float *y) {
  const int64_t parts = (columns + 511) / 512;
  MINE(rows * parts, first, last);
  for (int64_t item = first; item < last; ++item) {
    const int64_t row = item / parts, from = columns * (item % parts) / parts, to = columns * (item % parts + 1) / parts;
    const float *gate = gate_up + row * 2 * columns, *up = gate + columns;
    float *out = y + row * columns;
    int64_t i = from;
    for (; i + WIDTH <= to; i += WIDTH) store(out + i, silu(load(gate + i)) * load(up + i));
    for (; i < to; ++i) out[i] = gate[i] * (gate[i] > -87 ? 1 / (1 + expf(-gate[i])) : 0) * up[i];
  }
  pool_barrier(place);
}
