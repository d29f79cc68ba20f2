"""Attention of one new token of each row to that row's part of the cache, rows at their own positions.

A block takes one key/value head of one row; query heads that share it are rows of a tensor-core product
(FlashAttention-2's arrangement; Dao, 2023). Where there are few rows, the blocks of a cluster share the keys of one and
merge in each other's shared memory (Flash-Decoding's split; Dao et al., 2023). It reads whole buffers and bounds in an
array, so that nothing of a step depends on how long the sequences are. Knows arrays; knows no cache.
"""

from __future__ import annotations

import functools
import math

import mlx.core as mx

from core.kernels.compare import Tolerance
from core.kernels.cuda import PRIMITIVES
from core.kernels.device import current_device
from core.kernels.fused import Launch
from core.kernels.kernel import Kernel

_WARPS = 8
_FILL = 256  # blocks that fill a device; rows are split until there are so many
_HEAD_DIMS = (64, 128)

_HEADER = r"""
namespace corelm_decode_attention_NAME {
using namespace corelm_cuda;
namespace cg = cooperative_groups;
constexpr int THREADS = WARPS * 32, CHUNKS = HEAD_DIM / 32, HALVES = HEAD_DIM / 64;

struct Merged {  // what a block knows of its part of the keys
  float maxima[GROUP], sums[GROUP], values[GROUP * HEAD_DIM];
};

__device__ __forceinline__ float fade(float from, float to) { return from == -INFINITY ? 0.f : exp2f(from - to); }

// The same product where the lower 8 rows of a are zeros.
__device__ __forceinline__ void mma_top(float& d0, float& d1, u32 a0, u32 a2, u32 b0, u32 b1) {
  float d[4] = {d0, d1, 0.f, 0.f};
  mma(d, a0, 0u, a2, 0u, b0, b1);
  d0 = d[0];
  d1 = d[1];
}

__device__ __forceinline__ void attend(const __nv_bfloat16* queries, const __nv_bfloat16* keys,
                                       const __nv_bfloat16* values, const int* bounds, int kv_heads, int capacity,
                                       __nv_bfloat16* out) {
  __shared__ float maxima[WARPS * GROUP], sums[WARPS * GROUP], outputs[WARPS * GROUP * HEAD_DIM];
  __shared__ Merged merged;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
  const int part = blockIdx.x % SPLITS, head = blockIdx.x / SPLITS, row = head / kv_heads;
  const int kept = bounds[row * 3], first = bounds[row * 3 + 1], all = kept + bounds[row * 3 + 2] - first;
  const int chunk = ((all + SPLITS - 1) / SPLITS + 15) & ~15, begin = part * chunk, end = min(begin + chunk, all);
  const auto slot = [&](int i) { return static_cast<u64>(i < kept ? i : first - kept + i); };
  queries += static_cast<u64>(head) * GROUP * HEAD_DIM;
  keys += static_cast<u64>(head) * capacity * HEAD_DIM;
  values += static_cast<u64>(head) * capacity * HEAD_DIM;

  uint4 q[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c)
    q[c] = *reinterpret_cast<const uint4*>(queries + (g < GROUP ? g : 0) * HEAD_DIM + c * 32 + t * 8);
  float o[HALVES * 8][2];
#pragma unroll
  for (int i = 0; i < HALVES * 8; ++i) o[i][0] = o[i][1] = 0.f;
  float maximum = -INFINITY, sum = 0.f;
  for (int at = begin + warp * 16; at < end; at += WARPS * 16) {
    uint4 k[2][CHUNKS], v[HALVES][4];
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c)
        k[a][c] = stream16(keys + slot(min(at + a * 8 + g, end - 1)) * HEAD_DIM + c * 32 + t * 8);
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        v[h][r] = stream16(values + slot(min(at + (r >> 1) * 8 + t * 2 + (r & 1), end - 1)) * HEAD_DIM + h * 64 + g * 8);
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
      p[i] = key < end ? s[i >> 1][i & 1] * SCORE_SCALE : -INFINITY;
      best = fmaxf(best, p[i]);
    }
    best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
    best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
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
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  if (g < GROUP) {
    if (t == 0) {
      maxima[warp * GROUP + g] = maximum;
      sums[warp * GROUP + g] = sum;
    }
    float* to = outputs + (warp * GROUP + g) * HEAD_DIM;
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        to[h * 64 + 16 * t + j] = o[h * 8 + j][0];
        to[h * 64 + 16 * t + 8 + j] = o[h * 8 + j][1];
      }
  }
  __syncthreads();
  out += static_cast<u64>(head) * GROUP * HEAD_DIM;
  for (int i = tid; i < GROUP * HEAD_DIM; i += THREADS) {
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
    if constexpr (SPLITS == 1) {
      out[i] = __float2bfloat16_rn(value / total);
    } else {
      merged.values[i] = value;
      if (i % HEAD_DIM == 0) {
        merged.maxima[query] = best;
        merged.sums[query] = total;
      }
    }
  }
  if constexpr (SPLITS > 1) {
    cg::cluster_group cluster = cg::this_cluster();
    cluster.sync();
    const Merged* others[SPLITS];
#pragma unroll
    for (int s = 0; s < SPLITS; ++s) others[s] = cluster.map_shared_rank(&merged, s);
    for (int i = part * THREADS + tid; i < GROUP * HEAD_DIM; i += SPLITS * THREADS) {
      const int query = i / HEAD_DIM;
      float best = -INFINITY, total = 0.f, value = 0.f;
#pragma unroll
      for (int s = 0; s < SPLITS; ++s) best = fmaxf(best, others[s]->maxima[query]);
#pragma unroll
      for (int s = 0; s < SPLITS; ++s) {
        const float weight = fade(others[s]->maxima[query], best);
        total += weight * others[s]->sums[query];
        value += weight * others[s]->values[i];
      }
      out[i] = __float2bfloat16_rn(value / total);
    }
    cluster.sync();  // nobody leaves while others read its memory
  }
}
}
"""


def _reference(queries: mx.array, keys: mx.array, values: mx.array, bounds: mx.array) -> mx.array:
    slots = mx.arange(keys.shape[2], dtype=mx.int32)
    kept, first, last = (bounds[:, i, None] for i in range(3))
    mask = (slots < kept) | ((slots >= first) & (slots < last))
    scale = queries.shape[-1] ** -0.5
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask[:, None, None])


@functools.cache
def _kernel(head_dim: int, group: int, splits: int) -> Kernel:
    name = f"decode_attention_{head_dim}_{group}_{splits}"
    constants = {"HEAD_DIM": head_dim, "GROUP": group, "SPLITS": splits, "WARPS": _WARPS}
    space = f"corelm_{name}"
    text = _HEADER.replace("corelm_decode_attention_NAME {", f"{space} {{\n" + "\n".join(
        [f"constexpr int {key} = {value};" for key, value in constants.items()]
        + [f"constexpr float SCORE_SCALE = {head_dim**-0.5 * math.log2(math.e)!r}f;"]
    ))
    cluster = f"__cluster_dims__({splits}, 1, 1) " if splits > 1 else ""
    declaration = (
        f"namespace mlx::core::cu {{ __global__ void {cluster}__launch_bounds__({_WARPS * 32}) custom_kernel_{name}("
        "const __nv_bfloat16* queries, const __nv_bfloat16* keys, const __grid_constant__ Shape keys_shape, "
        "const __nv_bfloat16* values, const int32_t* bounds, __nv_bfloat16* out); }\n"
    )

    def launch(queries: mx.array, keys: mx.array, values: mx.array, bounds: mx.array) -> Launch:
        threads = _WARPS * 32
        return Launch(
            (keys.shape[0] * keys.shape[1] * splits * threads, 1, 1), (threads, 1, 1), queries.shape, queries.dtype
        )

    def supports(queries: mx.array, keys: mx.array, values: mx.array, bounds: mx.array) -> bool:
        if queries.ndim != 4 or keys.ndim != 4:
            return False
        rows, heads, _, _ = keys.shape
        return (
            all(array.dtype == mx.bfloat16 for array in (queries, keys, values))
            and queries.shape == (rows, heads * group, 1, head_dim)
            and keys.shape == values.shape
            and bounds.shape == (rows, 3)
            and bounds.dtype == mx.int32
        )

    def samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        found = []
        for (rows, capacity), part in zip(((3, 700), (1, 33)), mx.random.split(key, 2), strict=True):
            keys = mx.random.split(part, 3)
            shape = (rows, 2, capacity, head_dim)
            held = [mx.random.normal(shape, key=one).astype(dtype) for one in keys[:2]]
            queries = mx.random.normal((rows, 2 * group, 1, head_dim), key=keys[2]).astype(dtype)
            some = [[0, 0, 1 + capacity // 3], [4, 9, capacity], [0, capacity - 1, capacity]]
            found.append((queries, *held, mx.array(some[:rows], dtype=mx.int32)))
        return found

    return Kernel(
        name,
        _reference,
        launch=launch,
        sample_inputs=samples,
        cuda=f"{space}::attend(queries, keys, values, bounds, keys_shape[1], keys_shape[2], out);",
        header="#include <cuda_bf16.h>\n" + PRIMITIVES + text + declaration,
        # Probabilities are rounded to bfloat16, as FlashAttention's are.
        tolerance={mx.bfloat16: Tolerance(2e-2, 2e-2)},
        supports=supports,
    )


def decode_attention_kernel(queries: mx.array, keys: mx.array, scale: float) -> Kernel | None:
    """The kernel for these shapes; None where there is none, or no fused source on this device.

    It takes ``(queries [rows, heads, 1, head_dim], keys, values [rows, kv_heads, slots, head_dim], bounds)``, where
    ``bounds`` is int32 ``[rows, 3]``: a row sees its slots below the first number, and those from the second up to the
    third, that one not included.
    """
    device = current_device()
    if device is None or device.language != "cuda" or not _clusters():
        return None
    rows, kv_heads, slots, head_dim = keys.shape
    group = queries.shape[1] // kv_heads
    if head_dim not in _HEAD_DIMS or group > 8 or not math.isclose(scale, head_dim**-0.5, rel_tol=1e-6):
        return None
    splits = 1
    while splits < 8 and rows * kv_heads * splits * 2 <= _FILL and slots >= 128 * splits:
        splits *= 2
    return _kernel(head_dim, group, splits)


@functools.cache
def _clusters() -> bool:
    """Whether the device has clusters of blocks: from compute capability 9."""
    major = mx.device_info(mx.Device(mx.gpu)).get("compute_capability_major")
    return isinstance(major, int) and major >= 9
