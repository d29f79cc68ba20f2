// Attention of a row's new token. core/kernels/decode_attention.py says when, and what it is for.
//
// Python declares in this namespace: HEAD_DIM, GROUP, WARPS, SCORE_SCALE, NOTHING, PARTS.
#pragma once

#include "attention_tile.cuh"

namespace corelm_decode {
using namespace corelm_cuda;

constexpr int THREADS = WARPS * 32, CHUNKS = HEAD_DIM / 32, HALVES = HEAD_DIM / 64;

struct View {  // a row's part of an array, features together
  const __nv_bfloat16* data;
  long long stride;  // from head to head, or from slot to slot
};

// A block's part of the keys of one head. The newest key and value come by themselves, and are written to the last slot
// that is seen; nobody reads them there. With PARTS, floats go out: unscaled output, maximum (base 2) and sum.
template <typename Out>
__device__ __forceinline__ void attend(View queries, const __nv_bfloat16* new_key, const __nv_bfloat16* new_value,
                                       View keys, View values, const int* bounds, Out* out, int part, int parts) {
  __shared__ float maxima[WARPS * GROUP], sums[WARPS * GROUP], outputs[WARPS * GROUP * HEAD_DIM];
  __shared__ __align__(16) __nv_bfloat16 asked[GROUP * HEAD_DIM], newest[2 * HEAD_DIM];
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
  const int kept = bounds[0], first = bounds[1], end = kept + bounds[2] - first;
  const int each = ((end + 15) / 16 + parts - 1) / parts * 16, stop = min(end, (part + 1) * each);
  const auto slot = [&](int i) { return static_cast<long long>(i < kept ? i : first - kept + i); };
  for (int i = tid; i < GROUP * HEAD_DIM; i += THREADS)
    asked[i] = queries.data[i / HEAD_DIM * queries.stride + i % HEAD_DIM];
  for (int i = tid; i < 2 * HEAD_DIM; i += THREADS) {
    const bool is_key = i < HEAD_DIM;
    const int d = i % HEAD_DIM;
    const __nv_bfloat16 value = is_key ? new_key[d] : new_value[d];
    newest[i] = value;
    const View& to = is_key ? keys : values;
    if (part == 0) const_cast<__nv_bfloat16*>(to.data)[(bounds[2] - 1) * to.stride + d] = value;
  }
  __syncthreads();
  const auto read = [&](const View& from, int i, int d, int which) {
    if (i == end - 1) return *reinterpret_cast<const uint4*>(newest + which * HEAD_DIM + d);
    return stream16(from.data + slot(i) * from.stride + d);
  };

  // A part may have no key: there is nothing to fade then.
  const auto fade = [](float from, float to) { return from == -INFINITY ? 0.f : exp2f(from - to); };
  uint4 q[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c)
    q[c] = *reinterpret_cast<const uint4*>(asked + (g < GROUP ? g : 0) * HEAD_DIM + c * 32 + t * 8);
  float o[HALVES * 8][2];
#pragma unroll
  for (int i = 0; i < HALVES * 8; ++i) o[i][0] = o[i][1] = 0.f;
  float maximum = -INFINITY, sum = 0.f;
  for (int at = part * each + warp * 16; at < stop; at += WARPS * 16) {
    uint4 k[2][CHUNKS], v[HALVES][4];
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c)
        k[a][c] = read(keys, min(at + a * 8 + g, end - 1), c * 32 + t * 8, 0);
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        v[h][r] = read(values, min(at + (r >> 1) * 8 + t * 2 + (r & 1), end - 1), h * 64 + g * 8, 1);
    attend_tile(q, k, v, at, end, SCORE_SCALE, fade, o, maximum, sum);
  }
  leave_tile<GROUP, HEAD_DIM>(o, maximum, sum, maxima, sums, outputs);
  __syncthreads();
  for (int i = tid; i < GROUP * HEAD_DIM; i += THREADS) {
    const int query = i / HEAD_DIM;
    const Merged all = merged<WARPS, GROUP, HEAD_DIM>(maxima, sums, outputs, query, i % HEAD_DIM, fade);
    if constexpr (PARTS) {
      Out* to = out + query * parts * (HEAD_DIM + 2);
      to[i % HEAD_DIM] = all.value;
      if (i % HEAD_DIM == 0) {
        to[HEAD_DIM] = fmaxf(all.maximum, NOTHING);
        to[HEAD_DIM + 1] = all.total;
      }
    } else {
      out[i] = __float2bfloat16_rn(all.value / all.total);
    }
  }
}
}  // namespace corelm_decode
