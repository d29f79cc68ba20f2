"""Rows of a matrix by their indices: what an embedding looks up.

MLX compiles its own gather for every pair of dtypes at its first use, for two to three seconds each on CUDA. So the
check computes the same rows as sums over the matrix, in which all other rows are zeros: equal to the last bit.
"""

from __future__ import annotations

import mlx.core as mx

from core.kernels.fused import Launch
from core.kernels.kernel import Kernel
from core.kernels.source_files import CUDA, source_text

_THREADS = 256
_DTYPES = (mx.uint32, mx.uint8, mx.float32, mx.float16, mx.bfloat16)


def _reference(matrix: mx.array, numbers: mx.array) -> mx.array:
    return matrix[numbers]


def _definition(matrix: mx.array, numbers: mx.array) -> mx.array:
    rows = matrix.shape[0]
    chosen = (numbers.astype(mx.int32)[..., None] % rows) == mx.arange(rows)
    return mx.sum(mx.where(chosen[..., None], matrix, mx.zeros_like(matrix)), axis=-2).astype(matrix.dtype)


def _launch(matrix: mx.array, numbers: mx.array) -> Launch:
    width = matrix.shape[1]
    threads = min(width, _THREADS)
    grid = (numbers.size * threads, -(-width // threads), 1)
    return Launch(grid, (threads, 1, 1), (*numbers.shape, width), matrix.dtype)


def _supports(matrix: mx.array, numbers: mx.array) -> bool:
    # MLX counts threads in 32 bits.
    few = numbers.size * _THREADS < 2**31
    return matrix.ndim == 2 and matrix.dtype in _DTYPES and numbers.dtype in (mx.int32, mx.uint32) and few


def _samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
    samples: list[tuple[mx.array, ...]] = []
    for shape, part in zip(((1,), (2, 5), (1, 1, 3)), mx.random.split(key, 3), strict=True):
        keys = mx.random.split(part, 2)
        floats = (50 * mx.random.normal((37, 700), key=keys[0])).astype(dtype)
        numbers = mx.random.randint(0, 37, shape, key=keys[1])
        for matrix in (floats, mx.abs(floats).astype(mx.uint32), mx.abs(floats).astype(mx.uint8)):
            samples += [(matrix, numbers.astype(mx.int32)), (matrix, numbers.astype(mx.uint32))]
    return samples


take_rows = Kernel(
    "take_rows",
    _reference,
    launch=_launch,
    sample_inputs=_samples,
    cuda=source_text(CUDA / "take_rows.cu"),
    supports=_supports,
    definition=_definition,
)
"""``matrix [rows, width], numbers [...] -> [..., width]``; a negative number counts from the end."""
