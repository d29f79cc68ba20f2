// The whole step: which product follows which, what each one's rows become, and where the grid waits.
//
// Five waits a layer: after the projections of queries, keys and values; after attention; after its output projection;
// after gate and up; after down.
//
// Python declares in this namespace what depends on the model: core/fast/layout.py.
#pragma once

#include "attention.cuh"
#include "product.cuh"
#include "staging.cuh"

namespace corelm {
using namespace corelm_cuda;

// This block's rows of the residual stream are in its shared memory; others read them from device memory.
template <int KIND>
__device__ __forceinline__ void add_to_stream(const Share* shares, float* stream, float* mine, const float* unscale,
                                              const float* parts) {
  const int first = shares[KIND * WARPS].first, tiles = shares[KIND * WARPS].tiles;
  for (int i = threadIdx.x; i < tiles * 16 * BATCH; i += THREADS) {
    const int b = i % BATCH, row = i / BATCH;
    mine[i] += unscale[b] * row_sum<KIND>(shares, parts, row >> 4, row & 15, b);
    stream[b * HIDDEN + first * 16 + row] = mine[i];
  }
}

__device__ __forceinline__ void step(const u8* const* table, const u32* token, const int* state, u8* memory,
                                     const float* frequencies, __nv_bfloat16* logits, int* next_state, u8* smem) {
  const Work work = work_at(memory);
  u8* zeros = smem + SMEM_ZEROS;
  float* reduce = reinterpret_cast<float*>(smem + SMEM_REDUCE);
  u8* x = smem + SMEM_INPUT;
  u16* sums = reinterpret_cast<u16*>(smem + SMEM_SUMS);
  float* parts = reinterpret_cast<float*>(smem + SMEM_PARTS);
  float* unscale = reduce + REDUCE_FLOATS;
  float* mine = reinterpret_cast<float*>(smem + SMEM_MINE);
  float2* turns = reinterpret_cast<float2*>(smem + SMEM_TURNS);
  Share* shares = reinterpret_cast<Share*>(smem + SMEM_SHARES);
  int* chosen = reinterpret_cast<int*>(smem + SMEM_CHOSEN);
  const int tid = threadIdx.x, warp = tid >> 5;
  const u8* ring = smem + SMEM_RING + warp * STAGES * UNIT_BYTES;
  make_shares(shares);
  __syncthreads();
  Stream stream;
  u32 slot = 0, target = 0;
  stream.start(table, shares, chosen, smem_address(ring));
  for (int i = tid; i < 1024 / 16; i += THREADS) reinterpret_cast<uint4*>(zeros)[i] = make_uint4(0, 0, 0, 0);
  for (int i = tid; i < BATCH * HEAD_DIM / 2; i += THREADS)
    sincosf(static_cast<float>(state[i / (HEAD_DIM / 2)]) * frequencies[i % (HEAD_DIM / 2)], &turns[i].y, &turns[i].x);
  for (int i = tid; i < shares[WARPS].tiles * 16 * BATCH; i += THREADS) {
    float value[8];
    const int b = i % BATCH, row = shares[WARPS].first * 16 + i / BATCH;
    embedding_octet(table, token[b], row >> 3, value);
    float mine_now = value[0];
#pragma unroll
    for (int j = 1; j < 8; ++j) mine_now = (row & 7) == j ? value[j] : mine_now;
    mine[i] = mine_now;
  }
#pragma unroll 1
  for (int layer = 0; layer < LAYERS; ++layer) {
    const u8* const* fields = table + layer * FIELDS;
    stage_normed<0>(layer == 0, table, token, work.stream, fields[0], ATTENTION_EPSILON, x, sums, reduce, unscale);
    prefetch_keys(layer, table, state);
    product<0>(stream, slot, ring, x, sums, zeros, parts);
    for (int i = tid; i < shares[0].tiles * 16 * BATCH; i += THREADS) {
      const int b = i % BATCH, row = i / BATCH;
      work.qkv[b * QKV_ROWS + shares[0].first * 16 + row] =
          unscale[b] * row_sum<0>(shares, parts, row >> 4, row & 15, b);
    }
    grid_sync(work.counters, target);
    attention(layer, table, state, turns, work, x);
    grid_sync(work.counters, target);
    stage_plain<1, QUERY_ROWS>(work.attended, x, sums, reduce, unscale);
    product<1>(stream, slot, ring, x, sums, zeros, parts);
    add_to_stream<1>(shares, work.stream, mine, unscale, parts);
    if (EXPERTS != 0)
      for (int i = tid * 128; i < EXPERTS * HIDDEN * 2; i += THREADS * 128) prefetch(fields[16] + i);
    grid_sync(work.counters, target);
    stage_normed<2>(false, table, token, work.stream, fields[1], FEED_FORWARD_EPSILON, x, sums, reduce, unscale,
                    fields[16], chosen);
    if (EXPERTS != 0) stream.learn();
    product<2>(stream, slot, ring, x, sums, zeros, parts);
    const int first_pair = shares[2 * WARPS].first;
    for (int i = tid; i < shares[2 * WARPS].tiles * 8 * BATCH; i += THREADS) {
      const int b = i % BATCH, row = i / BATCH, tile = row >> 4 << 1;
      const float gate = unscale[b] * row_sum<2>(shares, parts, tile, row & 15, b);
      const float up = unscale[b] * row_sum<2>(shares, parts, tile + 1, row & 15, b);
      const float decay = expf(-fabsf(gate));
      float value = gate * ((gate < 0.f ? decay : 1.f) / (1.f + decay)) * up;
      if (EXPERTS != 0)
        value *= reinterpret_cast<const float*>(chosen + 16)[(first_pair + (row >> 4)) / (INTERMEDIATE / 16)];
      work.activated[b * ACTIVATED + first_pair * 16 + row] = __float2bfloat16_rn(value);
    }
    grid_sync(work.counters, target);
    stage_plain<3, ACTIVATED>(work.activated, x, sums, reduce, unscale);
    product<3>(stream, slot, ring, x, sums, zeros, parts);
    add_to_stream<3>(shares, work.stream, mine, unscale, parts);
    grid_sync(work.counters, target);
  }
  stage_normed<4>(false, table, token, work.stream, table[NORM_FIELD], HEAD_EPSILON, x, sums, reduce, unscale);
  product<4>(stream, slot, ring, x, sums, zeros, parts);
  for (int i = tid; i < shares[4 * WARPS].tiles * 16 * BATCH; i += THREADS) {
    const int b = i % BATCH, row = i / BATCH;
    logits[static_cast<u64>(b) * VOCABULARY + shares[4 * WARPS].first * 16 + row] =
        __float2bfloat16_rn(unscale[b] * row_sum<4>(shares, parts, row >> 4, row & 15, b));
  }
  if (blockIdx.x == 0)
    for (int i = tid; i < STATE_SIZE; i += THREADS) next_state[i] = i < BATCH ? state[i] + 1 : state[i];
  if (tid == 0) {  // The last block to leave puts the counter back for the next step, which starts after this one.
    __threadfence();
    if (atomicAdd(work.counters + 32, 1u) == gridDim.x - 1) {
      work.counters[0] = 0;
      work.counters[32] = 0;
      __threadfence();
    }
  }
}
}  // namespace corelm
