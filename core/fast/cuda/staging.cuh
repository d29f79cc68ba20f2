// What a product's input is made from: the embedding, the norm, the router, or what other blocks left.
//
// Every block makes the whole input for itself, in its own shared memory.
#pragma once

#include "product.cuh"

namespace corelm {
using namespace corelm_cuda;

__device__ __forceinline__ void embedding_octet(const u8* const* table, u32 token, int octet, float (&value)[8]) {
  const u8* const* at = table + EMBEDDING_FIELD;
  if (EMBEDDING_BITS == 16) {
    const uint4 v = *(reinterpret_cast<const uint4*>(at[0]) + static_cast<u64>(token) * (HIDDEN / 8) + octet);
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = element(v, i);
    return;
  }
  const u64 group = static_cast<u64>(token) * (HIDDEN / 64) + (octet >> 3);
  const float scale = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(at[1])[group]);
  const float bias = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(at[2])[group]);
  const u32* words = reinterpret_cast<const u32*>(at[0]) +
                     (static_cast<u64>(token) * (HIDDEN / 8) + octet) * (EMBEDDING_BITS / 4);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const u32 word = words[i * EMBEDDING_BITS / 32];
    const u32 q = (word >> (i * EMBEDDING_BITS % 32)) & ((1u << (EMBEDDING_BITS % 32)) - 1u);
    value[i] = __bfloat162float(__float2bfloat16_rn(scale * static_cast<float>(q) + bias));
  }
}

// The experts of largest score, and the softmax over these alone, in every block alike; scores are rounded to bfloat16,
// as the router's own product gives them.
template <int PASSES, int OCTETS>
__device__ __forceinline__ void choose_experts(const float (&value)[PASSES][8], float unscale, const u8* router,
                                               float* reduce, int* chosen) {
  constexpr int COUNT = EXPERTS > 0 ? EXPERTS : 1;
  float* scores = reduce + 2 * WARPS;  // [WARPS][EXPERTS]
  float score[COUNT];
#pragma unroll
  for (int e = 0; e < COUNT; ++e) score[e] = 0.f;
#pragma unroll
  for (int pass = 0; pass < PASSES; ++pass) {
    const int octet = pass * THREADS + threadIdx.x;
    if (octet < OCTETS) {
#pragma unroll
      for (int e = 0; e < COUNT; ++e) {
        const uint4 w = *(reinterpret_cast<const uint4*>(router) + e * OCTETS + octet);
#pragma unroll
        for (int i = 0; i < 8; ++i)
          score[e] += value[pass][i] * element(w, i);
      }
    }
  }
#pragma unroll
  for (int e = 0; e < COUNT; ++e) {
    score[e] = warp_sum(score[e]);
    if ((threadIdx.x & 31) == 0) scores[(threadIdx.x >> 5) * COUNT + e] = score[e];
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    float sum = 0.f;
    if (threadIdx.x < COUNT)
      for (int w = 0; w < WARPS; ++w) sum += scores[w * COUNT + threadIdx.x];
    sum = __bfloat162float(__float2bfloat16_rn(sum * unscale));
#pragma unroll
    for (int e = 0; e < COUNT; ++e) score[e] = __shfl_sync(0xffffffffu, sum, e);
  }
  if (threadIdx.x == 0) {
    float* shares = reinterpret_cast<float*>(chosen + 16);
    float all = 0.f, largest = 0.f;
    for (int i = 0; i < CHOSEN; ++i) {
      int best = 0;
      float top = -INFINITY;
#pragma unroll
      for (int e = 0; e < COUNT; ++e)
        if (score[e] > top) top = score[e], best = e;
#pragma unroll
      for (int e = 0; e < COUNT; ++e)
        if (e == best) score[e] = -INFINITY;
      if (i == 0) largest = top;
      chosen[i] = best;
      shares[i] = expf(top - largest);
      all += shares[i];
    }
    for (int i = 0; i < CHOSEN; ++i) shares[i] /= all;
  }
}

// The residual stream, normed (Zhang and Sennrich, 2019), as the input of product KIND; the first layer's is looked up.
template <int KIND>
__device__ __forceinline__ void stage_normed(bool lookup, const u8* const* table, const u32* token, const float* stream,
                                             const u8* norm, float epsilon, u8* x, u16* sums, float* reduce,
                                             float* unscale, const u8* router = nullptr, int* chosen = nullptr) {
  constexpr int OCTETS = HIDDEN / 8, PASSES = (OCTETS + THREADS - 1) / THREADS;
  const __nv_bfloat16* weight = reinterpret_cast<const __nv_bfloat16*>(norm);
  for (int b = 0; b < BATCH; ++b) {
    float value[PASSES][8], squares = 0.f, largest = 0.f;
    uint4 w[PASSES];
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
      const int octet = min(pass * THREADS + static_cast<int>(threadIdx.x), OCTETS - 1);
      w[pass] = *(reinterpret_cast<const uint4*>(weight) + octet);
      if (lookup) {
        embedding_octet(table, token[b], octet, value[pass]);
      } else {
        const float4* from = reinterpret_cast<const float4*>(stream + b * HIDDEN + octet * 8);
        const float4 lower = __ldcg(from), upper = __ldcg(from + 1);
        value[pass][0] = lower.x, value[pass][1] = lower.y, value[pass][2] = lower.z, value[pass][3] = lower.w;
        value[pass][4] = upper.x, value[pass][5] = upper.y, value[pass][6] = upper.z, value[pass][7] = upper.w;
      }
    }
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass)
      if (pass * THREADS + static_cast<int>(threadIdx.x) < OCTETS)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          squares += value[pass][i] * value[pass][i];
          value[pass][i] *= element(w[pass], i);
          largest = fmaxf(largest, fabsf(value[pass][i]));
        }
    squares = warp_sum(squares);
    largest = warp_max(largest);
    if ((threadIdx.x & 31) == 0) {
      reduce[threadIdx.x >> 5] = squares;
      reduce[WARPS + (threadIdx.x >> 5)] = largest;
    }
    __syncthreads();
    squares = largest = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) {
      squares += reduce[i];
      largest = fmaxf(largest, reduce[WARPS + i]);
    }
    const float norm_scale = rsqrtf(squares / HIDDEN + epsilon);
    const float scale = BITS(KIND) == 16 ? 1.f : input_scale(largest * norm_scale);
    if (threadIdx.x == 0) unscale[b] = 1.f / scale;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
      const int octet = pass * THREADS + threadIdx.x;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        value[pass][i] = scale * __bfloat162float(__float2bfloat16_rn(value[pass][i] * norm_scale));
      put_octet<BITS(KIND)>(x, sums, HIDDEN, b, octet, value[pass], octet < OCTETS);
    }
    if constexpr (KIND == 2 && EXPERTS != 0) choose_experts<PASSES, OCTETS>(value, 1.f / scale, router, reduce, chosen);
    __syncthreads();
  }
}

template <int KIND, int FEATURES>
__device__ __forceinline__ void stage_plain(const __nv_bfloat16* from, u8* x, u16* sums, float* reduce,
                                            float* unscale) {
  constexpr int OCTETS = FEATURES / 8, PASSES = (OCTETS + THREADS - 1) / THREADS;
  for (int b = 0; b < BATCH; ++b) {
    uint4 v[PASSES];  // all loads before any use
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass)
      v[pass] = __ldcg(reinterpret_cast<const uint4*>(from + b * FEATURES) +
                       min(pass * THREADS + static_cast<int>(threadIdx.x), OCTETS - 1));
    float scale = 1.f;
    if constexpr (BITS(KIND) != 16) {
      u32 largest = 0;  // magnitudes of bfloat16 compare as integers
#pragma unroll
      for (int pass = 0; pass < PASSES; ++pass)
#pragma unroll
        for (int i = 0; i < 4; ++i) largest = __vmaxu2(largest, component(v[pass], i) & 0x7fff7fffu);
      const float mine = warp_max(fmaxf(low(largest), high(largest)));
      if ((threadIdx.x & 31) == 0) reduce[threadIdx.x >> 5] = mine;
      __syncthreads();
      float all = 0.f;
#pragma unroll
      for (int i = 0; i < WARPS; ++i) all = fmaxf(all, reduce[i]);
      scale = input_scale(all);
    }
    if (threadIdx.x == 0) unscale[b] = 1.f / scale;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
      const int octet = pass * THREADS + threadIdx.x;
      float value[8];
#pragma unroll
      for (int i = 0; i < 8; ++i)
        value[i] = scale * element(v[pass], i);
      put_octet<BITS(KIND)>(x, sums, FEATURES, b, octet, value, octet < OCTETS);
    }
    __syncthreads();
  }
}
}  // namespace corelm
