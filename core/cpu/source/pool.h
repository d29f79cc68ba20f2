/* A team of threads that runs one function at a time, each thread with its place in the team. */
#ifndef CORELM_POOL_H
#define CORELM_POOL_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
  int index, count; /* of this thread, and of the team */
} Place;

typedef void (*Task)(Place place, void *argument);

/* Runs the task in threads of the team, the caller's among them, and returns when all have ended.
   work: bytes of weights to read, times the rows that meet them; a little work takes fewer threads than there are. */
void pool_run(Task task, void *argument, int64_t work);

/* How many threads the team has from now on; at least one. */
void pool_resize(int threads);

/* Waits until every thread of the team is here. What was written before is seen by all afterwards. */
void pool_barrier(Place place);

/* The next item of the phase, counted from 0: each is given out once between two barriers. */
int64_t pool_next(Place place);

/* Memory for `free`, in large pages where it is large; bytes becomes how many there are. Ends the process if there is none. */
void *take_memory(size_t *bytes);

/* Memory of this thread that lasts until its next call with the same slot (0 to 3), 64-byte aligned. */
void *pool_scratch(int slot, size_t bytes);

#endif
