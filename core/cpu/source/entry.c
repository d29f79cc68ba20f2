/* What Python calls. */
#include <pthread.h>

#include "model.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT int corelm_version(void) { return 2; }

EXPORT void corelm_threads(int count) { pool_resize(count); }

typedef struct {
  const Product *products;
  int count;
  enum How how;
  int precision;
} Multiplication;

static void multiply_task(Place place, void *argument) {
  const Multiplication *m = argument;
  multiply(place, m->products, m->count, m->how, m->precision);
}

static pthread_mutex_t passes = PTHREAD_MUTEX_INITIALIZER; /* one at a time: they share memory */

/* Another thread of the parent may have held it. */
static void forked(void) { pthread_mutex_init(&passes, NULL); }

__attribute__((constructor)) static void prepare(void) { pthread_atfork(NULL, NULL, forked); }

EXPORT void corelm_multiply(const Product *products, int count, int add, int precision) {
  pthread_mutex_lock(&passes);
  for (int first = 0; first < count; first += MOST_PRODUCTS) {
    const int left = count - first;
    Multiplication m = {products + first, left < MOST_PRODUCTS ? left : MOST_PRODUCTS, add ? ADD : REPLACE, precision};
    int64_t work = 0;
    for (int i = 0; i < m.count; ++i) work += work_of(m.products[i].matrix, m.products[i].m);
    pool_run(multiply_task, &m, work);
  }
  multiply_end();
  pthread_mutex_unlock(&passes);
}

typedef struct {
  const float *gate_up;
  float *y;
  int64_t rows, columns;
} Gating;

static void swiglu_task(Place place, void *argument) {
  const Gating *g = argument;
  gated(place, g->gate_up, g->rows, g->columns, g->y);
}

EXPORT void corelm_swiglu(const float *gate_up, int64_t rows, int64_t columns, float *y) {
  Gating g = {gate_up, y, rows, columns};
  pool_run(swiglu_task, &g, 12 * rows * columns);
}

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
