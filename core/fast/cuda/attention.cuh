// One token's attention, its keys split over blocks, and the write of its key and value.
//
// A block takes one key/value head and a part of the keys; the block with the newest one rotates it and writes it to
// the cache. Query heads that share the head are rows of a tensor-core product (FlashAttention-2's arrangement, Dao,
// 2023); warps and then blocks are merged by their maxima and sums, the last by whichever block of a head finishes last
// (Flash-Decoding's split, Dao et al., 2023, without its second launch).
#pragma once

#include "../../kernels/cuda/attention_tile.cuh"
#include "work.cuh"

namespace corelm {
using namespace corelm_cuda;

// Which keys a block attends to: of one key/value head, a part of those that are visible.
struct Part {
  int head, kind, slot, capacity, begin, end, active, split, splits;
};

__device__ __forceinline__ Part part_of(int layer, const int* state) {
  Part part;
  part.splits = static_cast<int>(gridDim.x) / (BATCH * KV_HEADS);
  part.split = blockIdx.x % part.splits;
  part.head = blockIdx.x / part.splits;
  part.kind = CACHE_KIND(layer);
  const int b = min(part.head / KV_HEADS, BATCH - 1), window = WINDOW(part.kind);
  part.slot = state[b] - state[STATE_BASE + part.kind * STATE_ROWS + b];
  part.capacity = state[STATE_CAPACITY + part.kind];
  const int first = window > 0 && part.slot + 1 > window ? part.slot + 1 - window : 0, keys = part.slot + 1 - first;
  // At least a tile for each warp: a merge of blocks costs more than they save on fewer keys.
  const int chunk = max(((keys + part.splits - 1) / part.splits + 15) & ~15, WARPS * 16);
  part.active = part.head < BATCH * KV_HEADS ? (keys + chunk - 1) / chunk : 0;
  part.begin = first + part.split * chunk;
  part.end = min(part.begin + chunk, part.slot + 1);
  return part;
}

// Cached keys and values of the first round come to the L2 cache while the projections are computed.
__device__ __forceinline__ void prefetch_keys(int layer, const u8* const* table, const int* state) {
  const Part part = part_of(layer, state);
  if (part.split >= part.active) return;
  const u64 start = (static_cast<u64>(part.head) * part.capacity + part.begin) * HEAD_DIM * 2;
  const int bytes = min(part.end - part.begin, 512) * HEAD_DIM * 2;
  for (int i = threadIdx.x * 128; i < bytes; i += THREADS * 128) {
    prefetch(table[layer * FIELDS + 2] + start + i);
    prefetch(table[layer * FIELDS + 3] + start + i);
  }
}

__device__ __forceinline__ void attention(int layer, const u8* const* table, const int* state, const float2* turns,
                                          const Work& work, u8* scratch) {
  constexpr int PAIRS = HEAD_DIM / 2, CHUNKS = HEAD_DIM / 32, HALVES = HEAD_DIM / 64, ROW = HEAD_DIM + 8;
  const Part part = part_of(layer, state);
  if (part.split >= part.active) return;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
  const int head = part.head, b = head / KV_HEADS, kv = head % KV_HEADS, slot = part.slot, capacity = part.capacity;
  const int begin = part.begin, end = part.end, active = part.active, split = part.split, splits = part.splits;

  __nv_bfloat16* queries = reinterpret_cast<__nv_bfloat16*>(scratch);  // [GROUP][ROW]
  float* maxima = reinterpret_cast<float*>(scratch + GROUP * ROW * 2);  // [WARPS][GROUP]
  float* sums = maxima + WARPS * GROUP;
  float* outputs = sums + WARPS * GROUP;  // [WARPS][GROUP][HEAD_DIM]
  int* last = reinterpret_cast<int*>(outputs + WARPS * GROUP * HEAD_DIM);
  const float* projected = work.qkv + b * QKV_ROWS;
  __nv_bfloat16* cached_keys = reinterpret_cast<__nv_bfloat16*>(const_cast<u8*>(table[layer * FIELDS + 2])) +
                               static_cast<u64>(head) * capacity * HEAD_DIM;
  __nv_bfloat16* cached_values = reinterpret_cast<__nv_bfloat16*>(const_cast<u8*>(table[layer * FIELDS + 3])) +
                                 static_cast<u64>(head) * capacity * HEAD_DIM;
  const bool newest = split == active - 1;
  for (int i = tid; i < (GROUP + (newest ? 1 : 0)) * PAIRS; i += THREADS) {
    const int row = i / PAIRS, d = i % PAIRS;
    const float* from = projected + (row < GROUP ? (kv * GROUP + row) * HEAD_DIM : QUERY_ROWS + kv * HEAD_DIM);
    const float x = ROTARY_FACTOR * __ldcg(from + d), y = ROTARY_FACTOR * __ldcg(from + d + PAIRS);
    const float2 turn = turns[b * PAIRS + d];
    __nv_bfloat16* to = row < GROUP ? queries + row * ROW : cached_keys + static_cast<u64>(slot) * HEAD_DIM;
    to[d] = __float2bfloat16_rn(x * turn.x - y * turn.y);
    to[d + PAIRS] = __float2bfloat16_rn(y * turn.x + x * turn.y);
  }
  if (newest)
    for (int i = tid; i < HEAD_DIM; i += THREADS)
      cached_values[static_cast<u64>(slot) * HEAD_DIM + i] =
          __float2bfloat16_rn(__ldcg(projected + QUERY_ROWS + (KV_HEADS + kv) * HEAD_DIM + i));
  __syncthreads();

  uint4 q[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c)
    q[c] = *reinterpret_cast<const uint4*>(queries + (g < GROUP ? g : 0) * ROW + c * 32 + t * 8);
  float o[HALVES * 8][2];
#pragma unroll
  for (int i = 0; i < HALVES * 8; ++i) o[i][0] = o[i][1] = 0.f;
  float maximum = -INFINITY, sum = 0.f;
  // Each block has a key, and so a finite maximum, to fade to.
  const auto fade = [](float from, float to) { return exp2f(from - to); };
  for (int at = begin + warp * 16; at < end; at += WARPS * 16) {
    uint4 k[2][CHUNKS], v[HALVES][4];
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c)
        k[a][c] = __ldcg(reinterpret_cast<const uint4*>(
            cached_keys + static_cast<u64>(min(at + a * 8 + g, end - 1)) * HEAD_DIM + c * 32 + t * 8));
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        v[h][r] = __ldcg(reinterpret_cast<const uint4*>(
            cached_values + static_cast<u64>(min(at + (r >> 1) * 8 + t * 2 + (r & 1), end - 1)) * HEAD_DIM + h * 64 +
            g * 8));
    const Softmax softmax = attend_tile(q, k, v, at, end, SCORE_SCALE, fade, o, {maximum, sum});
    maximum = softmax.maximum;
    sum = softmax.sum;
  }
  leave_tile<GROUP, HEAD_DIM>(o, maximum, sum, maxima, sums, outputs);
  __syncthreads();
  __nv_bfloat16* result = work.attended + b * QUERY_ROWS + kv * GROUP * HEAD_DIM;
  float* mine = work.partial + static_cast<u64>(blockIdx.x) * GROUP * (HEAD_DIM + 2);
  for (int i = tid; i < GROUP * HEAD_DIM; i += THREADS) {
    const int row = i / HEAD_DIM;
    const Merged all = merged<WARPS, GROUP, HEAD_DIM>(maxima, sums, outputs, row, i % HEAD_DIM, fade);
    if (active == 1) {
      result[i] = __float2bfloat16_rn(all.value / all.total);
    } else {
      mine[2 * GROUP + i] = all.value;
      if (i % HEAD_DIM == 0) {
        mine[row] = all.maximum;
        mine[GROUP + row] = all.total;
      }
    }
  }
  if (active == 1) return;
  __syncthreads();
  if (tid == 0) {
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(work.counters + 64 + head)
                 : "memory");
    *last = before == static_cast<u32>(active - 1);
  }
  __syncthreads();
  if (*last == 0) return;
  if (tid == 0) work.counters[64 + head] = 0;
  const float* others = work.partial + static_cast<u64>(head) * splits * GROUP * (HEAD_DIM + 2);
  float* weights = maxima;  // [active][GROUP], then the sums
  for (int i = tid; i < active * GROUP * 2; i += THREADS)
    weights[i] = __ldcg(others + i / (2 * GROUP) * GROUP * (HEAD_DIM + 2) + i % (2 * GROUP));
  __syncthreads();
  for (int i = tid; i < GROUP * HEAD_DIM; i += THREADS) {
    const int row = i / HEAD_DIM;
    float best = -INFINITY, all = 0.f, value = 0.f;
    for (int a = 0; a < active; ++a) best = fmaxf(best, weights[a * 2 * GROUP + row]);
    for (int start = 0; start < active; start += 8) {
      float one[8];  // eight loads in flight
#pragma unroll
      for (int j = 0; j < 8; ++j)
        one[j] = __ldcg(others + min(start + j, active - 1) * GROUP * (HEAD_DIM + 2) + 2 * GROUP + i);
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (start + j < active) {
          const float weight = exp2f(weights[(start + j) * 2 * GROUP + row] - best);
          all += weight * weights[(start + j) * 2 * GROUP + GROUP + row];
          value += weight * one[j];
        }
    }
    result[i] = __float2bfloat16_rn(value / all);
  }
}
}  // namespace corelm
