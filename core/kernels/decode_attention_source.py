"""CUDA text: attention of a row's new token. ``core.kernels.decode_attention`` says when, and what it is for.

Knows warps and tiles; the namespace that it is in and its constants come before it.
"""

from core.kernels.attention_tile import tile

HEADER = (
    r"""
using namespace corelm_cuda;
constexpr int THREADS = WARPS * 32, CHUNKS = HEAD_DIM / 32, HALVES = HEAD_DIM / 64;

struct View {  // a row's part of an array, features together
  const __nv_bfloat16* data;
  long long stride;  // from head to head, or from slot to slot
};

__device__ __forceinline__ float fade(float from, float to) { return from == -INFINITY ? 0.f : exp2f(from - to); }

// The same product where the lower 8 rows of a are zeros.
__device__ __forceinline__ void mma_top(float& d0, float& d1, u32 a0, u32 a2, u32 b0, u32 b1) {
  float d[4] = {d0, d1, 0.f, 0.f};
  mma(d, a0, 0u, a2, 0u, b0, b1);
  d0 = d[0];
  d1 = d[1];
}

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
"""
    + tile("fade(maximum, best)")
    + r"""  for (int i = tid; i < GROUP * HEAD_DIM; i += THREADS) {
    const int query = i / HEAD_DIM;
    float best = -INFINITY, total = 0.f, value = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) best = fmaxf(best, maxima[w * GROUP + query]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      const float weight = fade(maxima[w * GROUP + query], best);
      total += weight * sums[w * GROUP + query];
      value += weight * outputs[(w * GROUP + query) * HEAD_DIM + i % HEAD_DIM];
    }
    if constexpr (PARTS) {
      Out* to = out + query * parts * (HEAD_DIM + 2);
      to[i % HEAD_DIM] = value;
      if (i % HEAD_DIM == 0) {
        to[HEAD_DIM] = fmaxf(best, NOTHING);
        to[HEAD_DIM + 1] = total;
      }
    } else {
      out[i] = __float2bfloat16_rn(value / total);
    }
  }
}
}
"""
)

BODY = """
    const int head = blockIdx.x, row = head / cache_k_shape[1], kv = head % cache_k_shape[1];
    const auto* q = queries + row * queries_strides[0] + kv * GROUP * queries_strides[1];
    SPACE::attend({q, queries_strides[1]}, new_key + row * new_key_strides[0] + kv * new_key_strides[1],
                  new_value + row * new_value_strides[0] + kv * new_value_strides[1],
                  {cache_k + row * cache_k_strides[0] + kv * cache_k_strides[1], cache_k_strides[2]},
                  {cache_v + row * cache_v_strides[0] + kv * cache_v_strides[1], cache_v_strides[2]}, bounds + row * 3,
                  TARGET);
"""
WHOLE = "out + head * GROUP * HEAD_DIM, 0, 1"
PART = "out + (head * GROUP * gridDim.y + blockIdx.y) * (HEAD_DIM + 2), int(blockIdx.y), int(gridDim.y)"
