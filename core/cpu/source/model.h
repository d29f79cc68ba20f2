/* A model of pre-norm blocks, one pass of it over some tokens, and the parts of a pass. */
#ifndef CORELM_MODEL_H
#define CORELM_MODEL_H

#include "matrix.h"

/* y = x + attention(norm(x)); y + feed_forward(norm(y)). */
typedef struct {
  Matrix qkv, output, gate_up, down, router; /* router: columns 0 where there are no experts */
  const float *attention_norm, *feed_forward_norm;
  float attention_epsilon, feed_forward_epsilon;
  float scale;                        /* of query-key products */
  int32_t heads, kv_heads, head_dim;
  int32_t experts, chosen;            /* experts: 0 for one feed-forward layer */
  int32_t rotation, view;             /* which of the pass's tables, and of its ways to see the cache */
} Layer;

typedef struct {
  Matrix embedding, head;
  const float *norm;
  float epsilon;
  int32_t layers, hidden, precision;
  const Layer *layer;
} Model;

/* The cosines and sines of all tokens of a pass for one rotary embedding. */
typedef struct {
  const float *frequencies; /* [dims / 2], radians a position */
  float factor;             /* on what is rotated */
  int32_t dims, traditional;
  float *cosines, *sines;   /* [rows, dims / 2] */
} Rotation;

/* Tokens that follow each other in one sequence, and its place in a cache. */
typedef struct {
  int32_t first, count;    /* rows of the pass */
  int32_t cache, sequence; /* which cache, and which row of it */
} Run;

/* What the blocks of one kind see of their caches. */
typedef struct {
  const int64_t *slots;    /* for each cache, slots of its buffers */
  const int32_t *slot;     /* for each run, the slot of its first token */
  int32_t front, recent;   /* a token sees slots below front, and the last `recent` up to its own; recent 0: all */
} View;

typedef struct {
  const int32_t *tokens;   /* [rows] */
  const int32_t *positions;
  int32_t rows, runs, caches, rotations, views;
  const Run *run;
  Rotation *rotation;
  const View *view;
  float *const *keys, *const *values; /* [layers, caches]: [sequences, kv_heads, slots, head_dim] */
  float *hidden;           /* [rows, hidden]: the result, before the final norm */
} Pass;

void rms_norm(Place place, const float *x, const float *weight, float epsilon, int64_t rows, int64_t columns, float *y);
void make_rotations(Place place, const Pass *pass);
void rotate_and_store(Place place, const Layer *layer, const Pass *pass, int index, float *qkv);
void attend(Place place, const Layer *layer, const Pass *pass, int index, const float *qkv, float *out, int precision);
void gated(Place place, const float *gate_up, int64_t rows, int64_t columns, float *y);

/* Not called by two threads at once. */
void forward(const Model *model, const Pass *pass);
void head(const Model *model, const float *x, int64_t rows, float *logits); /* final norm and head */

#endif
