// Attention of up to 8 queries that share a key/value head, by a warp, to 16 keys at a time (FlashAttention-2's
// arrangement; Dao, 2023).
//
// Queries are rows of a tensor-core product: lane 4 g + t holds query g. Scores and maxima are to base 2.
#pragma once

#include "primitives.cuh"

namespace corelm_cuda {
// As mma, where the lower 8 rows of a are zeros, and their results are not wanted.
__device__ __forceinline__ void mma_top(float& d0, float& d1, u32 a0, u32 a2, u32 b0, u32 b1) {
  float d[4] = {d0, d1, 0.f, 0.f};
  mma(d, a0, 0u, a2, 0u, b0, b1);
  d0 = d[0];
  d1 = d[1];
}

// Attends to the keys from `at` on that are below `end`.
//
// q: the features of this lane's query. k, v: of the 16 keys, as the products take them. fade(from, to): the factor on
// what was summed before. o, maximum, sum: what the warp has found so far; o is not yet divided by sum, nor is sum yet
// that of all four lanes of a query.
template <int CHUNKS, int HALVES, typename Fade>
__device__ __forceinline__ void attend_tile(const uint4 (&q)[CHUNKS], const uint4 (&k)[2][CHUNKS],
                                            const uint4 (&v)[HALVES][4], int at, int end, float scale, Fade fade,
                                            float (&o)[HALVES * 8][2], float& maximum, float& sum) {
  const int t = threadIdx.x & 3;
  float s[2][2] = {{0.f, 0.f}, {0.f, 0.f}};
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      mma_top(s[a][0], s[a][1], q[c].x, q[c].y, k[a][c].x, k[a][c].y);
      mma_top(s[a][0], s[a][1], q[c].z, q[c].w, k[a][c].z, k[a][c].w);
    }
  float p[4], best = maximum;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int key = at + (i >> 1) * 8 + t * 2 + (i & 1);
    p[i] = key < end ? s[i >> 1][i & 1] * scale : -INFINITY;
    best = fmaxf(best, p[i]);
  }
  best = quad_max(best);
  const float faded = fade(maximum, best);
  maximum = best;
  sum *= faded;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    p[i] = exp2f(p[i] - best);
    sum += p[i];
  }
  const u32 p0 = pack(p[0], p[1]), p1 = pack(p[2], p[3]);
#pragma unroll
  for (int h = 0; h < HALVES; ++h)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float(&to)[2] = o[h * 8 + j];
      to[0] *= faded;
      to[1] *= faded;
      const u32 select = j & 1 ? 0x7632u : 0x5410u;
      mma_top(to[0], to[1], p0, p1, __byte_perm(component(v[h][0], j >> 1), component(v[h][1], j >> 1), select),
              __byte_perm(component(v[h][2], j >> 1), component(v[h][3], j >> 1), select));
    }
}

// Writes what a warp has found for the first GROUP queries.
template <int GROUP, int HEAD_DIM>
__device__ __forceinline__ void leave_tile(const float (&o)[HEAD_DIM / 8][2], float maximum, float sum, float* maxima,
                                           float* sums, float* outputs) {
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
  sum = quad_sum(sum);
  if (g < GROUP) {
    if (t == 0) {
      maxima[warp * GROUP + g] = maximum;
      sums[warp * GROUP + g] = sum;
    }
    float* to = outputs + (warp * GROUP + g) * HEAD_DIM;
#pragma unroll
    for (int h = 0; h < HEAD_DIM / 64; ++h)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        to[h * 64 + 16 * t + j] = o[h * 8 + j][0];
        to[h * 64 + 16 * t + 8 + j] = o[h * 8 + j][1];
      }
  }
}

// One feature of one query, over all keys of a block: not yet divided by the total of the weights.
struct Merged {
  float maximum, total, value;
};

template <int WARPS, int GROUP, int HEAD_DIM, typename Fade>
__device__ __forceinline__ Merged merged(const float* maxima, const float* sums, const float* outputs,
                                         int query, int feature, Fade fade) {
  float best = -INFINITY, total = 0.f, value = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) best = fmaxf(best, maxima[w * GROUP + query]);
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    const float weight = fade(maxima[w * GROUP + query], best);
    total += weight * sums[w * GROUP + query];
    value += weight * outputs[(w * GROUP + query) * HEAD_DIM + feature];
  }
  return {best, total, value};
}
}  // namespace corelm_cuda
