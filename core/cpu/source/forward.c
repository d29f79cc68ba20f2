/* A pass through all blocks: every thread runs the whole of it, and shares each part with the others. */
#include <math.h>
#include <stdlib.h>

#include "model.h"

/* Arrays of one pass, in one piece of memory. */
typedef struct {
  float *normed, *qkv, *attended, *wide, *narrow, *logits, *sorted, *apart, *weights;
  int32_t *experts, *order, *starts;
} Work;

typedef struct {
  const Model *model;
  const Pass *pass;
  Work work;
} Forward;

static size_t round_up(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

static void *take(uint8_t **memory, size_t *size, int64_t numbers) {
  uint8_t *at = *memory;
  const size_t bytes = round_up(4 * (size_t)numbers);
  *size += bytes;
  if (at != NULL) *memory += bytes;
  return at;
}

/* Lays the arrays out from `memory` on, and says how many bytes they take. */
static size_t lay_out(const Model *model, const Pass *pass, uint8_t *memory, Work *work) {
  int64_t qkv = 0, heads = 0, wide = 0, narrow = 0, copies = 1, experts = 0, sparse = 0;
  for (int i = 0; i < model->layers; ++i) {
    const Layer *layer = model->layer + i;
    const int64_t q = (int64_t)layer->heads * layer->head_dim;
    if (layer->qkv.rows > qkv) qkv = layer->qkv.rows;
    if (q > heads) heads = q;
    if (layer->gate_up.rows > wide) wide = layer->gate_up.rows;
    if (layer->down.columns > narrow) narrow = layer->down.columns;
    if (layer->experts > experts) experts = layer->experts;
    if (layer->experts && layer->chosen > copies) copies = layer->chosen;
    sparse |= layer->experts > 0;
  }
  const int64_t rows = pass->rows, apart = sparse ? rows * copies : 0;
  size_t size = 0;
  work->normed = take(&memory, &size, rows * model->hidden);
  work->qkv = take(&memory, &size, rows * qkv);
  work->attended = take(&memory, &size, rows * heads);
  work->wide = take(&memory, &size, rows * copies * wide);
  work->narrow = take(&memory, &size, rows * copies * narrow);
  work->logits = take(&memory, &size, rows * experts);
  work->sorted = take(&memory, &size, apart * model->hidden);
  work->apart = take(&memory, &size, apart * model->hidden);
  work->weights = take(&memory, &size, apart);
  work->experts = take(&memory, &size, apart);
  work->order = take(&memory, &size, apart);
  work->starts = take(&memory, &size, experts + 1);
  return size;
}

static void product(Place place, const Matrix *matrix, const float *x, int64_t rows, float *y, enum How how, int precision) {
  const Product one = {matrix, 0, x, y, rows, matrix->columns, matrix->rows};
  multiply(place, &one, 1, how, precision);
}

/* narrow = silu(gate) * up, of products with matrices [gate, up]; wide holds them where the product cannot do it all. */
static void gated_products(Place place, Product *products, int count, int64_t rows, float *wide, float *narrow, int precision) {
  const int64_t columns = products[0].matrix->rows / 2;
  if (!takes_gates(products, count, precision)) {
    multiply(place, products, count, REPLACE, precision);
    gated(place, wide, rows, columns, narrow);
    return;
  }
  for (int i = 0; i < count; ++i) {
    products[i].y = narrow + (products[i].y - wide) / 2;
    products[i].ldy = columns;
  }
  multiply(place, products, count, GATE, precision);
}

static void embed(Place place, const Model *model, const Pass *pass) {
  for (int64_t row = pool_next(place); row < pass->rows; row = pool_next(place)) {
    const int64_t token = pass->tokens[row];
    float *to = pass->hidden + row * model->hidden;
    if (token < 0 || token >= model->embedding.rows)
      memset(to, 0, sizeof(float) * (size_t)model->hidden);
    else
      unpack(&model->embedding, 0, token, 0, model->hidden, to);
  }
  pool_barrier(place);
}

/* The experts of largest score of each row, the earlier one first among equals, and their softmax. */
static void route(Place place, const Layer *layer, int64_t rows, Work *work) {
  const int64_t chosen = layer->chosen;
  for (int64_t row = place.index; row < rows; row += place.count) {
    const float *scores = work->logits + row * layer->experts;
    int32_t *experts = work->experts + row * chosen;
    float *weights = work->weights + row * chosen, total = 0;
    for (int64_t k = 0; k < chosen; ++k) {
      int32_t best = -1;
      for (int32_t i = 0; i < layer->experts; ++i) {
        int taken = 0;
        for (int64_t j = 0; j < k; ++j) taken |= experts[j] == i;
        if (!taken && (best < 0 || scores[i] > scores[best])) best = i;
      }
      experts[k] = best;
      weights[k] = expf(scores[best] - scores[experts[0]]);
      total += weights[k];
    }
    for (int64_t k = 0; k < chosen; ++k) weights[k] /= total;
  }
  pool_barrier(place);
  if (place.index == 0) { /* rows in the order of their experts */
    int32_t *starts = work->starts;
    memset(starts, 0, sizeof(int32_t) * (size_t)(layer->experts + 1));
    for (int64_t i = 0; i < rows * chosen; ++i) ++starts[work->experts[i] + 1];
    for (int64_t i = 0; i < layer->experts; ++i) starts[i + 1] += starts[i];
    for (int64_t i = 0; i < rows * chosen; ++i) work->order[i] = starts[work->experts[i]]++;
    for (int64_t i = layer->experts; i > 0; --i) starts[i] = starts[i - 1];
    starts[0] = 0;
  }
  pool_barrier(place);
}

static void experts(Place place, const Model *model, const Layer *layer, int64_t rows, Work *work, float *hidden) {
  const int64_t chosen = layer->chosen, columns = model->hidden;
  product(place, &layer->router, work->normed, rows, work->logits, REPLACE, EXACT);
  route(place, layer, rows, work);
  for (int64_t i = place.index; i < rows * chosen; i += place.count)
    memcpy(work->sorted + work->order[i] * columns, work->normed + i / chosen * columns, sizeof(float) * (size_t)columns);
  pool_barrier(place);
  Product products[MOST_PRODUCTS];
  int count = 0;
  for (int64_t i = 0; i < layer->experts; ++i) {
    const int64_t first = work->starts[i], m = work->starts[i + 1] - first;
    if (m == 0) continue;
    products[count++] = (Product){&layer->gate_up, i, work->sorted + first * columns, work->wide + first * layer->gate_up.rows, m, columns, layer->gate_up.rows};
  }
  gated_products(place, products, count, rows * chosen, work->wide, work->narrow, model->precision);
  for (int i = 0; i < count; ++i) {
    const int64_t first = work->starts[products[i].expert];
    products[i].matrix = &layer->down;
    products[i].x = work->narrow + first * layer->down.columns;
    products[i].y = work->apart + first * columns;
    products[i].ldx = layer->down.columns;
    products[i].ldy = columns;
  }
  multiply(place, products, count, REPLACE, model->precision);
  const int64_t parts = (columns + 511) / 512;
  for (int64_t item = place.index; item < rows * parts; item += place.count) {
    const int64_t row = item / parts, from = columns * (item % parts) / parts, to = columns * (item % parts + 1) / parts;
    for (int64_t k = 0; k < chosen; ++k) {
      const float *y = work->apart + work->order[row * chosen + k] * columns, weight = work->weights[row * chosen + k];
      for (int64_t i = from; i < to; ++i) hidden[row * columns + i] += weight * y[i];
    }
  }
  pool_barrier(place);
}

static void forward_task(Place place, void *argument) {
  Forward *forward = argument;
  const Model *model = forward->model;
  const Pass *pass = forward->pass;
  Work *work = &forward->work;
  const int64_t rows = pass->rows;
  embed(place, model, pass);
  make_rotations(place, pass);
  for (int i = 0; i < model->layers; ++i) {
    const Layer *layer = model->layer + i;
    rms_norm(place, pass->hidden, layer->attention_norm, layer->attention_epsilon, rows, model->hidden, work->normed);
    product(place, &layer->qkv, work->normed, rows, work->qkv, REPLACE, model->precision);
    rotate_and_store(place, layer, pass, i, work->qkv);
    attend(place, layer, pass, i, work->qkv, work->attended, model->precision);
    product(place, &layer->output, work->attended, rows, pass->hidden, ADD, model->precision);
    rms_norm(place, pass->hidden, layer->feed_forward_norm, layer->feed_forward_epsilon, rows, model->hidden, work->normed);
    if (layer->experts) {
      experts(place, model, layer, rows, work, pass->hidden);
      continue;
    }
    Product wide = {&layer->gate_up, 0, work->normed, work->wide, rows, model->hidden, layer->gate_up.rows};
    gated_products(place, &wide, 1, rows, work->wide, work->narrow, model->precision);
    product(place, &layer->down, work->narrow, rows, pass->hidden, ADD, model->precision);
  }
}

static void *memory;
static size_t memory_size;

#define KEPT ((size_t)64 << 20) /* bytes that are kept between passes */

static void shrink(void) {
  if (memory_size <= KEPT) return;
  free(memory);
  memory = NULL;
  memory_size = 0;
}

static uint8_t *grow(size_t bytes) {
  if (bytes > memory_size) {
    free(memory);
    memory_size = bytes;
    memory = take_memory(&memory_size);
  }
  return memory;
}

/* Not called by two threads at once. */
void forward(const Model *model, const Pass *pass) {
  Forward all = {model, pass, {0}};
  lay_out(model, pass, grow(lay_out(model, pass, NULL, &all.work)), &all.work);
  int64_t work = 0;
  for (int i = 0; i < model->layers; ++i) {
    const Layer *layer = model->layer + i;
    const int64_t each = layer->experts ? layer->chosen : 1;
    work += work_of(&layer->qkv, pass->rows) + work_of(&layer->output, pass->rows);
    work += each * (work_of(&layer->gate_up, pass->rows) + work_of(&layer->down, pass->rows));
  }
  pool_run(forward_task, &all, work);
  shrink();
  multiply_end();
}

typedef struct {
  const Model *model;
  const float *x;
  int64_t rows;
  float *logits, *normed;
} Head;

static void head_task(Place place, void *argument) {
  Head *head = argument;
  const Model *model = head->model;
  rms_norm(place, head->x, model->norm, model->epsilon, head->rows, model->hidden, head->normed);
  product(place, &model->head, head->normed, head->rows, head->logits, REPLACE, model->precision);
}

void head(const Model *model, const float *x, int64_t rows, float *logits) {
  Head one = {model, x, rows, logits, (float *)grow(4 * (size_t)(rows * model->hidden))};
  pool_run(head_task, &one, work_of(&model->head, rows));
  shrink();
  multiply_end();
}
