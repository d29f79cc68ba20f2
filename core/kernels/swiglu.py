"""SwiGLU in one kernel: ``silu(gate) * up``, of one fused projection or of two.

Shazeer, "GLU Variants Improve Transformer", 2020 (arXiv:2002.05202), with silu(x) = x * sigmoid(x).
"""

from __future__ import annotations

import math

import mlx.core as mx

from core.cpu import swiglu as cpu
from core.kernels.fused import Launch
from core.kernels.kernel import Kernel
from core.kernels.policy import ELEMENTWISE_THREADS
from core.kernels.source_files import CUDA, METAL, source_text

_VECTOR_BYTES = 16  # the widest load of one thread, in Metal and CUDA alike
_DTYPES = (mx.float32, mx.float16, mx.bfloat16)


def _swiglu_reference(gate_up: mx.array) -> mx.array:
    gate, up = mx.split(gate_up.astype(mx.float32), 2, axis=-1)
    return (gate * mx.sigmoid(gate) * up).astype(gate_up.dtype)


def _swiglu_pair_reference(gate: mx.array, up: mx.array) -> mx.array:
    wide = gate.astype(mx.float32)
    return (wide * mx.sigmoid(wide) * up.astype(mx.float32)).astype(gate.dtype)


def _launch(output_shape: tuple[int, ...], dtype: mx.Dtype, run: int) -> Launch:
    """``run``: how many neighbours in memory are neighbours in the result."""
    width = _VECTOR_BYTES // dtype.size
    if run % width:
        width = 1
    threads = math.prod(output_shape) // width
    return Launch(
        grid=(threads, 1, 1),
        threadgroup=(min(threads, ELEMENTWISE_THREADS), 1, 1),
        output_shape=output_shape,
        output_dtype=dtype,
        template=(("T", dtype), ("WIDTH", width)),
    )


def _swiglu_launch(gate_up: mx.array) -> Launch:
    hidden = gate_up.shape[-1] // 2
    return _launch((*gate_up.shape[:-1], hidden), gate_up.dtype, hidden)


def _swiglu_pair_launch(gate: mx.array, up: mx.array) -> Launch:
    return _launch(gate.shape, gate.dtype, gate.size)


def _swiglu_supports(gate_up: mx.array) -> bool:
    # Threads are counted in 32 bits.
    return gate_up.dtype in _DTYPES and gate_up.ndim > 0 and gate_up.shape[-1] % 2 == 0 and gate_up.size < 2**31


def _swiglu_pair_supports(gate: mx.array, up: mx.array) -> bool:
    return (
        gate.dtype in _DTYPES
        and gate.dtype == up.dtype
        and gate.ndim > 0
        and gate.shape == up.shape
        and gate.size < 2**31
    )


# Decode and prefill, vectors and odd sizes, fewer elements than a vector, more than one threadgroup.
_SAMPLE_SHAPES = ((1, 1, 512), (3, 5, 264), (2, 7), (1, 1), (1, 3), (5, 8), (7, 129), (2, 3, 1003), (70_001, 2))


def _random(key: mx.array, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    # Wide enough that exp(-gate) leaves the range of float16, and sometimes that of float32.
    return (mx.random.normal(shape, key=key) * 30).astype(dtype)


def _swiglu_samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
    keys = mx.random.split(key, len(_SAMPLE_SHAPES))
    return [(_random(k, (*s[:-1], 2 * s[-1]), dtype),) for s, k in zip(_SAMPLE_SHAPES, keys, strict=True)]


def _swiglu_pair_samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
    gate_key, up_key = mx.random.split(key)
    gates, ups = (mx.random.split(k, len(_SAMPLE_SHAPES)) for k in (gate_key, up_key))
    return [(_random(g, s, dtype), _random(u, s, dtype)) for s, g, u in zip(_SAMPLE_SHAPES, gates, ups, strict=True)]


#: ``swiglu(gate_up)``: ``[..., 2 * hidden]``, gate first and up after it, to ``[..., hidden]`` in the same dtype.
#: Computes in float32 and rounds once. Raises what ``mx.split`` raises when the last dimension is odd.
swiglu = Kernel(
    "swiglu",
    _swiglu_reference,
    launch=_swiglu_launch,
    sample_inputs=_swiglu_samples,
    metal=source_text(METAL / "swiglu.metal"),
    cuda=source_text(CUDA / "swiglu.cu"),
    cpu=cpu.swiglu,
    supports=_swiglu_supports,
)

#: ``swiglu_pair(gate, up)``: the same of two arrays ``[..., hidden]``, for projections that could not be fused.
#: The result has the dtype of ``gate``.
swiglu_pair = Kernel(
    "swiglu_pair",
    _swiglu_pair_reference,
    launch=_swiglu_pair_launch,
    sample_inputs=_swiglu_pair_samples,
    metal=source_text(METAL / "swiglu_pair.metal"),
    cuda=source_text(CUDA / "swiglu_pair.cu"),
    supports=_swiglu_pair_supports,
)
