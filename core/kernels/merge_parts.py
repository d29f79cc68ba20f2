"""One softmax from several: what blocks that each attended to a part of the keys have found, in one (FlashDecoding)."""

from __future__ import annotations

import mlx.core as mx

from core.kernels.compare import Tolerance
from core.kernels.fused import Launch
from core.kernels.kernel import Kernel
from core.kernels.source_files import CUDA, source_text

NOTHING = -1e30
"""The scale of a part that has no key."""


def _reference(found: mx.array) -> mx.array:
    values, best, sums = found[..., :-2], found[..., -2:-1], found[..., -1:]
    weights = mx.power(2.0, best - mx.max(best, axis=3, keepdims=True))
    return (mx.sum(weights * values, axis=3) / mx.sum(weights * sums, axis=3)).astype(mx.bfloat16)


def _launch(found: mx.array) -> Launch:
    first, second, third, _, width = found.shape
    threads = width // 2 - 1
    shape = (first, second, third, width - 2)
    return Launch((first * second * third * threads, 1, 1), (threads, 1, 1), shape, mx.bfloat16)


def _supports(found: mx.array) -> bool:
    return found.dtype == mx.float32 and found.ndim == 5 and found.shape[4] in range(34, 1026, 2)


def _samples(key: mx.array, _dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
    samples: list[tuple[mx.array, ...]] = []
    for shape, part in zip(((1, 4, 1, 33, 128), (3, 5, 2, 2, 64)), mx.random.split(key, 2), strict=True):
        keys = mx.random.split(part, 3)
        values = mx.random.normal(shape, key=keys[0])
        best = 3 * mx.random.normal((*shape[:4], 1), key=keys[1])
        sums = mx.random.uniform(1, 20, (*shape[:4], 1), key=keys[2])
        empty = (mx.arange(shape[3]) == 1)[:, None]
        samples.append(
            (
                mx.concatenate(
                    [mx.where(empty, 0.0, values), mx.where(empty, NOTHING, best), mx.where(empty, 0.0, sums)], -1
                ),
            )
        )
    return samples


merge_parts = Kernel(
    "merge_parts",
    _reference,
    launch=_launch,
    sample_inputs=_samples,
    cuda=source_text(CUDA / "merge_parts.cu"),
    header="#include <cuda_bf16.h>\n",
    tolerance={mx.bfloat16: Tolerance(1e-3, 1.6e-2)},
    supports=_supports,
)
"""``found -> merged``.

``found`` is float32 ``[..., parts, head_dim + 2]``, three axes before the parts: of each part the weighted sum of
its values, then the scale of its weights, a power of two (``NOTHING`` where there was no key), and their sum, in
that scale too. ``merged`` is bfloat16 ``[..., head_dim]``.
"""
