/* What Python calls. */
#include <pthread.h>

#include "model.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT int corelm_version(void) { return 2; }

EXPORT void corelm_threads(int count) { pool_resize(count); }

typedef struct {
  const Product *products;
  int count, add, precision;
} Multiplication;

static void multiply_task(Place place, void *argument) {
  const Multiplication *m = argument;
  multiply(place, m->products, m->count, m->add, m->precision);
}

EXPORT void corelm_multiply(const Product *products, int count, int add, int precision) {
  Multiplication m = {products, count, add, precision};
  pool_run(multiply_task, &m);
}

typedef struct {
  const float *gate_up;
  float *y;
  int64_t rows, columns;
} Gating;

/* As `gated`, for gates of any size: its exponential is of no positive number. */
static void swiglu_task(Place place, void *argument) {
  const Gating *g = argument;
  const int64_t all = g->rows * g->columns, first = all * place.index / place.count, last = all * (place.index + 1) / place.count;
  for (int64_t at = first; at < last;) {
    const int64_t row = at / g->columns, left = (row + 1) * g->columns - at, rest = last - at;
    const int64_t count = left < rest ? left : rest, step = count < WIDTH ? count : WIDTH;
    const float *gate = g->gate_up + at + row * g->columns, *up = gate + g->columns;
    float gates[WIDTH] = {0}, ups[WIDTH] = {0}, results[WIDTH];
    memcpy(gates, gate, sizeof(float) * (size_t)step);
    memcpy(ups, up, sizeof(float) * (size_t)step);
    const vfloat x = load(gates);
    const vint negative = x < 0, seen = x > -87;
    const vfloat decay = (vfloat)((vint)exponential(-maximum(x, -x)) & (seen | ~negative));
    const vfloat top = (vfloat)(((vint)decay & negative) | ((vint)splat(1) & ~negative));
    store(results, x * (top / (splat(1) + decay)) * load(ups));
    memcpy(g->y + at, results, sizeof(float) * (size_t)step);
    at += step;
  }
}

EXPORT void corelm_swiglu(const float *gate_up, int64_t rows, int64_t columns, float *y) {
  Gating g = {gate_up, y, rows, columns};
  pool_run(swiglu_task, &g);
}

static pthread_mutex_t passes = PTHREAD_MUTEX_INITIALIZER; /* one at a time: they share memory */

EXPORT void corelm_forward(const Model *model, const Pass *pass) {
  pthread_mutex_lock(&passes);
  forward(model, pass);
  pthread_mutex_unlock(&passes);
}

EXPORT void corelm_head(const Model *model, const float *x, int64_t rows, float *logits) {
  pthread_mutex_lock(&passes);
  head(model, x, rows, logits);
  pthread_mutex_unlock(&passes);
}

/* Bytes of the structures, for Python to compare with its own. */
EXPORT int corelm_size(int which) {
  const size_t sizes[] = {sizeof(Matrix), sizeof(Product), sizeof(Layer), sizeof(Model), sizeof(Rotation), sizeof(Run), sizeof(View), sizeof(Pass)};
  return which >= 0 && which < (int)(sizeof sizes / sizeof *sizes) ? (int)sizes[which] : 0;
}
