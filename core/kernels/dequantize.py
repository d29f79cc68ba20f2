"""Dequantizing at the speed of memory: MLX's affine integers, scales and biases to floats, eight elements a thread.

Rounds once, to the scales' dtype, where ``mx.dequantize`` rounds the product as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx

from core.kernels.fused import Launch
from core.kernels.kernel import Kernel
from core.kernels.policy import ELEMENTWISE_THREADS
from core.kernels.source_files import CUDA, source_text

_EACH = 8  # elements of a thread: 16 bytes of half precision, and never of two groups
_DTYPES = (mx.float32, mx.float16, mx.bfloat16)


def rounded_once(weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int) -> mx.array:
    """``mx.dequantize`` in float32, rounded to the scales' dtype."""
    wide = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.dequantize(weight, wide[0], wide[1], group_size, bits).astype(scales.dtype)


def _reference(bits: int, group_size: int) -> Callable[[mx.array, mx.array, mx.array], mx.array]:
    def dequantize(weight: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
        return rounded_once(weight, scales, biases, group_size, bits)

    return dequantize


def _kernel(bits: int, group_size: int) -> Kernel:
    def shape(scales: mx.array) -> tuple[int, ...]:
        return (*scales.shape[:-1], scales.shape[-1] * group_size)

    def launch(weight: mx.array, scales: mx.array, biases: mx.array) -> Launch:
        threads = scales.size * group_size // _EACH
        template = (("T", scales.dtype), ("BITS", bits), ("GROUP", group_size))
        return Launch((threads, 1, 1), (min(threads, ELEMENTWISE_THREADS), 1, 1), shape(scales), scales.dtype, template)

    def supports(weight: mx.array, scales: mx.array, biases: mx.array) -> bool:
        whole = weight.shape[-1] * 32 == scales.shape[-1] * group_size * bits
        same = scales.dtype == biases.dtype and scales.shape == biases.shape
        # MLX counts threads in 32 bits.
        return whole and same and scales.dtype in _DTYPES and scales.size * group_size // _EACH < 2**31

    def samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        found = []
        for rows, part in zip(((1,), (3, 5), (2, 700)), mx.random.split(key, 3), strict=True):
            keys = mx.random.split(part, 3)
            groups = (*rows, 3)
            words = (*rows, 3 * group_size * bits // 32)
            low, high = mx.random.randint(0, 1 << 16, (2, *words), dtype=mx.uint32, key=keys[0])
            floats = [mx.random.normal(groups, key=one).astype(dtype) for one in keys[1:]]
            found.append((low | (high << 16), *floats))
        return found

    return Kernel(
        f"dequantize_{bits}_{group_size}",
        _reference(bits, group_size),
        launch=launch,
        sample_inputs=samples,
        cuda=source_text(CUDA / "dequantize.cu"),
        supports=supports,
    )


_KERNELS: Mapping[tuple[int, int], Kernel] = {
    (bits, group_size): _kernel(bits, group_size) for bits in (4, 8) for group_size in (32, 64, 128)
}


def dequantize(
    weight: mx.array, scales: mx.array, biases: mx.array | None, group_size: int, bits: int, mode: str = "affine"
) -> mx.array:
    """``mx.dequantize``: ``[..., words]`` to ``[..., columns]``, by a kernel where there is one for the settings."""
    kernel = _KERNELS.get((bits, group_size)) if mode == "affine" and biases is not None else None
    if kernel is None:
        return mx.dequantize(weight, scales, biases, group_size, bits, mode=mode)
    assert biases is not None
    return kernel(weight, scales, biases)
