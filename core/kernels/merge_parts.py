"""One softmax from several: what blocks that each attended to a part of the keys have found, in one (FlashDecoding).

Knows partial sums; knows no keys.
"""

from __future__ import annotations

import functools

import mlx.core as mx

from core.kernels.compare import Tolerance
from core.kernels.fused import Launch
from core.kernels.kernel import Kernel

NOTHING = -1e30
"""The maximum of a part that has no key."""

_BODY = """
    const int parts = found_shape[2], width = found_shape[3], dim = width - 2;
    const float* from = found + static_cast<long long>(blockIdx.x) * parts * width;
    float best = -1e30f, total = 0.f, value = 0.f;
    for (int p = 0; p < parts; ++p) best = fmaxf(best, from[p * width + dim]);
    for (int p = 0; p < parts; ++p) {
      const float weight = exp2f(from[p * width + dim] - best);
      total += weight * from[p * width + dim + 1];
      value += weight * from[p * width + threadIdx.x];
    }
    out[static_cast<long long>(blockIdx.x) * dim + threadIdx.x] = __float2bfloat16_rn(value / total);
"""


def _reference(found: mx.array) -> mx.array:
    values, best, sums = found[..., :-2], found[..., -2:-1], found[..., -1:]
    weights = mx.power(2.0, best - mx.max(best, axis=2, keepdims=True))
    merged = mx.sum(weights * values, axis=2) / mx.sum(weights * sums, axis=2)
    return merged[:, :, None].astype(mx.bfloat16)


def _launch(found: mx.array) -> Launch:
    rows, heads, _, width = found.shape
    threads = width - 2
    return Launch((rows * heads * threads, 1, 1), (threads, 1, 1), (rows, heads, 1, threads), mx.bfloat16)


def _supports(found: mx.array) -> bool:
    return found.dtype == mx.float32 and found.ndim == 4 and 32 <= found.shape[3] - 2 <= 1024


def _samples(key: mx.array, _dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
    samples: list[tuple[mx.array, ...]] = []
    for shape, part in zip(((1, 4, 33, 128), (3, 2, 2, 64)), mx.random.split(key, 2), strict=True):
        keys = mx.random.split(part, 3)
        values = mx.random.normal(shape, key=keys[0])
        best = 3 * mx.random.normal((*shape[:3], 1), key=keys[1])
        sums = mx.random.uniform(1, 20, (*shape[:3], 1), key=keys[2])
        empty = (mx.arange(shape[2]) == 1)[:, None]
        samples.append(
            (
                mx.concatenate(
                    [mx.where(empty, 0.0, values), mx.where(empty, NOTHING, best), mx.where(empty, 0.0, sums)], -1
                ),
            )
        )
    return samples


@functools.cache
def merge_parts() -> Kernel:
    """The kernel ``found -> merged``.

    ``found`` is float32 ``[rows, heads, parts, head_dim + 2]``: of each part the output, not yet divided by the sum of
    its weights, then the largest score (times log₂ e; ``NOTHING`` where there was no key), relative to which weights
    are, and that sum. ``merged`` is bfloat16 ``[rows, heads, 1, head_dim]``.
    """
    return Kernel(
        "merge_parts",
        _reference,
        launch=_launch,
        sample_inputs=_samples,
        cuda=_BODY,
        header="#include <cuda_bf16.h>\n",
        tolerance={mx.bfloat16: Tolerance(1e-3, 1.6e-2)},
        supports=_supports,
    )
