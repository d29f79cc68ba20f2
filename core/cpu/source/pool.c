#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define MOST_THREADS 256
#define SPINS 2000 /* of a thread that has nothing to do, before it sleeps: about 0.1 ms */
#define SHARE 2000000 /* work that is worth a thread: about 0.2 ms of it */
#define YIELD 256  /* spins at a barrier, before it lets other threads run */

static struct {
  pthread_mutex_t running; /* one task at a time */
  pthread_mutex_t lock;
  pthread_cond_t wake;
  Task task;
  void *argument;
  atomic_uint generation; /* of tasks */
  int wanted, started;    /* threads of the team, and those that exist beside the caller */
  int team;               /* threads of this task */
  unsigned born[MOST_THREADS]; /* the last task before each thread began */
  _Alignas(64) atomic_int busy;
  _Alignas(64) atomic_int arrived;
  _Alignas(64) atomic_uint phase;
  _Alignas(64) atomic_llong next;
} pool = {.running = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .wanted = 1};

static inline void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

void pool_barrier(Place place) {
  if (place.count == 1) {
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    return;
  }
  const unsigned phase = atomic_load_explicit(&pool.phase, memory_order_acquire);
  if (atomic_fetch_add_explicit(&pool.arrived, 1, memory_order_acq_rel) + 1 == place.count) {
    atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool.phase, phase + 1, memory_order_release);
    return;
  }
  for (int i = 0; atomic_load_explicit(&pool.phase, memory_order_acquire) == phase; ++i) {
    if (i < YIELD)
      relax();
    else
      sched_yield();
  }
}

int64_t pool_next(Place place) {
  (void)place;
  return atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
}

static void *work(void *number) {
  const int index = (int)(intptr_t)number;
  unsigned seen = pool.born[index];
  for (;;) {
    int spins = 0;
    while (atomic_load_explicit(&pool.generation, memory_order_acquire) == seen && spins < SPINS) {
      relax();
      ++spins;
    }
    if (spins == SPINS) {
      pthread_mutex_lock(&pool.lock);
      while (atomic_load_explicit(&pool.generation, memory_order_acquire) == seen)
        pthread_cond_wait(&pool.wake, &pool.lock);
      pthread_mutex_unlock(&pool.lock);
    }
    seen = atomic_load_explicit(&pool.generation, memory_order_acquire);
    if (index < pool.team) pool.task((Place){index, pool.team}, pool.argument);
    atomic_fetch_sub_explicit(&pool.busy, 1, memory_order_release);
  }
  return NULL;
}

/* A forked process has none of its parent's threads. */
static void forked(void) {
  pthread_mutex_init(&pool.running, NULL);
  pthread_mutex_init(&pool.lock, NULL);
  pthread_cond_init(&pool.wake, NULL);
  pool.started = 0;
  atomic_store(&pool.busy, 0);
  atomic_store(&pool.arrived, 0);
}

__attribute__((constructor)) static void prepare(void) { pthread_atfork(NULL, NULL, forked); }

/* Starts what is missing of the team. */
static void hire(void) {
  if (pool.started + 1 >= pool.wanted) return;
  sigset_t all, before; /* signals belong to the threads of the program */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  while (pool.started + 1 < pool.wanted) {
    pool.born[pool.started + 1] = atomic_load(&pool.generation);
    pthread_t thread;
    if (pthread_create(&thread, &attributes, work, (void *)(intptr_t)(pool.started + 1))) {
      pool.wanted = pool.started + 1;
      break;
    }
    ++pool.started;
  }
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void pool_run(Task task, void *argument, int64_t work) {
  pthread_mutex_lock(&pool.running);
  hire();
  const int64_t useful = 1 + work / SHARE;
  pool.team = useful < pool.wanted ? (int)useful : pool.wanted;
  atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
  if (pool.team > 1) {
    pool.task = task;
    pool.argument = argument;
    atomic_store_explicit(&pool.busy, pool.started, memory_order_relaxed);
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add_explicit(&pool.generation, 1, memory_order_release);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
  }
  task((Place){0, pool.team}, argument);
  for (int i = 0; pool.team > 1 && atomic_load_explicit(&pool.busy, memory_order_acquire) > 0; ++i) {
    if (i < YIELD)
      relax();
    else
      sched_yield();
  }
  pthread_mutex_unlock(&pool.running);
}

void pool_resize(int threads) {
  pthread_mutex_lock(&pool.running);
  pool.wanted = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
  pthread_mutex_unlock(&pool.running);
}

#define HUGE ((size_t)2 << 20) /* a large page of x86 */

void *take_memory(size_t *bytes) {
  const size_t unit = *bytes >= HUGE ? HUGE : 4096;
  *bytes = (*bytes + unit - 1) & ~(unit - 1);
  void *memory = aligned_alloc(unit, *bytes);
  if (memory == NULL) abort(); /* as MLX ends a process whose memory is spent */
#if defined(MADV_HUGEPAGE)
  if (unit == HUGE) madvise(memory, *bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

void *pool_scratch(int slot, size_t bytes) {
  static _Thread_local struct {
    void *memory;
    size_t bytes;
  } held[4];
  if (held[slot].bytes < bytes) {
    free(held[slot].memory);
    held[slot].bytes = bytes + bytes / 4;
    held[slot].memory = take_memory(&held[slot].bytes);
  }
  return held[slot].memory;
}
