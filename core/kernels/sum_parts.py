"""The sum of what blocks have found, each in its part of the features, rounded once."""

from __future__ import annotations

import mlx.core as mx

from core.kernels.fused import Launch
from core.kernels.kernel import Kernel
from core.kernels.policy import ELEMENTWISE_THREADS
from core.kernels.source_files import CUDA, source_text


def _reference(found: mx.array) -> mx.array:
    return mx.sum(found, axis=0).astype(mx.bfloat16)


def _launch(found: mx.array) -> Launch:
    blocks = -(-found.size // found.shape[0] // (4 * ELEMENTWISE_THREADS))
    return Launch((blocks * ELEMENTWISE_THREADS, 1, 1), (ELEMENTWISE_THREADS, 1, 1), found.shape[1:], mx.bfloat16)


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
    cuda=source_text(CUDA / "sum_parts.cu"),
    header="#include <cuda_bf16.h>\n",
    supports=_supports,
)
"""``found [parts, ...] -> sum [...]``, float32 to bfloat16."""
