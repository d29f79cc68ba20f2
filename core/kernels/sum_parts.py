"""The sum of what blocks have found, each in its part of the features, rounded once. Knows sums; knows no matrix."""

from __future__ import annotations

import mlx.core as mx

from core.kernels.fused import Launch
from core.kernels.kernel import Kernel

_THREADS = 256
_BODY = """
    const int parts = found_shape[0];
    long long size = 1;
    for (int axis = 1; axis < found_ndim; ++axis) size *= found_shape[axis];
    const long long at = 4 * (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (at < size) {
      float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
      for (int p = 0; p < parts; ++p) {
        const float4 v = __ldcs(reinterpret_cast<const float4*>(found + p * size + at));
        sum.x += v.x;
        sum.y += v.y;
        sum.z += v.z;
        sum.w += v.w;
      }
      reinterpret_cast<__nv_bfloat162*>(out + at)[0] = __floats2bfloat162_rn(sum.x, sum.y);
      reinterpret_cast<__nv_bfloat162*>(out + at)[1] = __floats2bfloat162_rn(sum.z, sum.w);
    }
"""


def _reference(found: mx.array) -> mx.array:
    return mx.sum(found, axis=0).astype(mx.bfloat16)


def _launch(found: mx.array) -> Launch:
    blocks = -(-found.size // found.shape[0] // (4 * _THREADS))
    return Launch((blocks * _THREADS, 1, 1), (_THREADS, 1, 1), found.shape[1:], mx.bfloat16)


def _supports(found: mx.array) -> bool:
    return found.dtype == mx.float32 and found.ndim >= 2 and found.shape[-1] % 4 == 0


def _samples(key: mx.array, _dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
    shapes = ((8, 3, 1, 4100), (2, 1, 128), (1, 7, 64))
    parts = mx.random.split(key, len(shapes))
    return [(mx.random.normal(shape, key=part),) for shape, part in zip(shapes, parts, strict=True)]


sum_parts = Kernel(
    "sum_parts",
    _reference,
    launch=_launch,
    sample_inputs=_samples,
    cuda=_BODY,
    header="#include <cuda_bf16.h>\n",
    supports=_supports,
)
"""``found [parts, ...] -> sum [...]``, float32 to bfloat16."""
