"""SwiGLU in one kernel: ``silu(gate) * up``, of one fused projection or of two.

Knows the formula and how to spread it over threads; knows no module and no checkpoint.

Shazeer, "GLU Variants Improve Transformer", 2020 (arXiv:2002.05202), with silu(x) = x * sigmoid(x).
"""

from __future__ import annotations

import math

import mlx.core as mx

from core.cpu import swiglu as cpu
from core.kernels.fused import Launch
from core.kernels.kernel import Kernel

_THREADS = 256
_VECTOR_BYTES = 16  # the widest load of one thread, in Metal and CUDA alike
_DTYPES = (mx.float32, mx.float16, mx.bfloat16)


def _swiglu_reference(gate_up: mx.array) -> mx.array:
    gate, up = mx.split(gate_up.astype(mx.float32), 2, axis=-1)
    return (gate * mx.sigmoid(gate) * up).astype(gate_up.dtype)


def _swiglu_pair_reference(gate: mx.array, up: mx.array) -> mx.array:
    wide = gate.astype(mx.float32)
    return (wide * mx.sigmoid(wide) * up.astype(mx.float32)).astype(gate.dtype)


# Both languages run the same lines on WIDTH neighbours a thread, in float32, where exp(-|gate|) neither overflows nor
# meets an infinity that a fast math mode would be allowed to ignore.
_METAL = """
    for (int i = 0; i < WIDTH; ++i) {
        const float gate_i = static_cast<float>(GATE);
        const float up_i = static_cast<float>(UP);
        const float decay = metal::precise::exp(-metal::abs(gate_i));
        const float sigmoid = (gate_i < 0.0f ? decay : 1.0f) / (1.0f + decay);
        out[to + i] = static_cast<T>(gate_i * sigmoid * up_i);
    }
"""

# Inputs may start anywhere in a larger buffer, so that wide loads need a look at the address; the branch is the same
# for all threads.
_CUDA = """
    struct alignas(sizeof(T) * WIDTH) Pack { T values[WIDTH]; };
    Pack gates, ups, results;
    const bool aligned = (reinterpret_cast<size_t>(gates_at) | reinterpret_cast<size_t>(ups_at)) % sizeof(Pack) == 0;
    if (aligned) {
        gates = *reinterpret_cast<const Pack*>(gates_at);
        ups = *reinterpret_cast<const Pack*>(ups_at);
    } else {
        for (int i = 0; i < WIDTH; ++i) {
            gates.values[i] = gates_at[i];
            ups.values[i] = ups_at[i];
        }
    }
    for (int i = 0; i < WIDTH; ++i) {
        const float gate_i = static_cast<float>(gates.values[i]);
        const float up_i = static_cast<float>(ups.values[i]);
        const float decay = expf(-fabsf(gate_i));
        const float sigmoid = (gate_i < 0.0f ? decay : 1.0f) / (1.0f + decay);
        results.values[i] = static_cast<T>(gate_i * sigmoid * up_i);
    }
    *reinterpret_cast<Pack*>(out + to) = results;  // an output starts its own buffer, and is aligned
"""

_SWIGLU_METAL = """
    const uint hidden = static_cast<uint>(gate_up_shape[gate_up_ndim - 1]) / 2;
    const uint packs = hidden / WIDTH;
    const uint pack = thread_position_in_grid.x;
    const size_t from = static_cast<size_t>(pack / packs) * 2 * hidden + (pack % packs) * WIDTH;
    const size_t to = static_cast<size_t>(pack) * WIDTH;""" + _METAL.replace("GATE", "gate_up[from + i]").replace(
    "UP", "gate_up[from + hidden + i]"
)

_SWIGLU_CUDA = (
    """
    const unsigned hidden = static_cast<unsigned>(gate_up_shape[gate_up_ndim - 1]) / 2;
    const unsigned packs = hidden / WIDTH;
    unsigned total = packs;
    for (int axis = 0; axis < gate_up_ndim - 1; ++axis) total *= gate_up_shape[axis];
    const unsigned pack = blockIdx.x * blockDim.x + threadIdx.x;
    if (pack >= total) return;
    const T* gates_at = gate_up + static_cast<size_t>(pack / packs) * 2 * hidden + (pack % packs) * WIDTH;
    const T* ups_at = gates_at + hidden;
    const size_t to = static_cast<size_t>(pack) * WIDTH;"""
    + _CUDA
)

_PAIR_METAL = """
    const size_t to = static_cast<size_t>(thread_position_in_grid.x) * WIDTH;""" + _METAL.replace(
    "GATE", "gate[to + i]"
).replace("UP", "up[to + i]")

_PAIR_CUDA = (
    """
    size_t total = 1;
    for (int axis = 0; axis < gate_ndim; ++axis) total *= gate_shape[axis];
    const size_t to = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH;
    if (to >= total) return;
    const T* gates_at = gate + to;
    const T* ups_at = up + to;"""
    + _CUDA
)


def _launch(output_shape: tuple[int, ...], dtype: mx.Dtype, run: int) -> Launch:
    """``run``: how many neighbours in memory are neighbours in the result."""
    width = _VECTOR_BYTES // dtype.size
    if run % width:
        width = 1
    threads = math.prod(output_shape) // width
    return Launch(
        grid=(threads, 1, 1),
        threadgroup=(min(threads, _THREADS), 1, 1),
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
    metal=_SWIGLU_METAL,
    cuda=_SWIGLU_CUDA,
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
    metal=_PAIR_METAL,
    cuda=_PAIR_CUDA,
    supports=_swiglu_pair_supports,
)
