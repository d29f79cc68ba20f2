"""Products with one matrix of weights, of every type that the CPU library reads.

They have no sources for GPUs, where MLX has products of its own: the functions give None wherever MLX is to multiply.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from core.cpu import structures
from core.cpu.products import product
from core.cpu.structures import CLOSE, EXACT, ROUNDED
from core.kernels.compare import Tolerance
from core.kernels.fused import Launch
from core.kernels.gradient import Function
from core.kernels.kernel import Kernel
from core.kernels.weights import AFFINE, DENSE, FLOATS, MXFP4, MXFP4_FORMAT, Format, packing

SMALLEST = 1 << 15
"""Multiplications from which a call is worth what it costs: MLX computes fewer as fast."""
_SAMPLE_ROWS = (1, 3, 6, 9)  # few, and those that tiles are for
# Sums cancel: their error is that of their terms, which are near 1 together.
TOLERANCES = {
    EXACT: {mx.float32: Tolerance(1e-5, 1e-5)},
    CLOSE: {mx.float32: Tolerance(1e-3, 1e-3), mx.float16: Tolerance(1e-3, 2e-3)},
    ROUNDED: {dtype: Tolerance(3e-2, 1.6e-2) for dtype in FLOATS},
}
Samples = Callable[[mx.array, mx.Dtype], list[tuple[mx.array, ...]]]


def dense_product(x: mx.array, weight: mx.array) -> mx.array | None:
    """``x @ weight.T`` for floats ``[..., columns]`` and ``[rows, columns]``; None where MLX is to compute it.

    The result has the dtype that MLX promotes both to; sums are float32.
    """
    return call(_KERNELS, DENSE, (x, weight), x.size * weight.shape[0])


def packed_product(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array | None) -> mx.array | None:
    """``x [..., columns]`` times a transposed quantized matrix, in the dtype of ``x``; None where MLX is to compute it.

    Args:
        weight: packed ``[rows, words]``.
        scales: ``[rows, groups]``.
        biases: as scales; None means mxfp4.
    """
    size = x.size * weight.shape[0]
    if biases is None:
        return call(_KERNELS, MXFP4_FORMAT, (x, weight, scales), size)
    return call(_KERNELS, AFFINE, (x, weight, scales, biases), size)


def call(
    kernels: dict[tuple[Format, int], Kernel], kind: Format, inputs: tuple[mx.array, ...], multiplications: int
) -> mx.array | None:
    """Calls the kernel for these dtypes where its CPU source takes the inputs and is worth it; else None."""
    if multiplications < SMALLEST or mx.default_device().type != mx.DeviceType.cpu:
        return None
    return kernels[kind, precision_of(inputs)].fused(*inputs)


def precision_of(inputs: tuple[mx.array, ...]) -> int:
    """How closely a product is computed: exactly where all floats are float32."""
    return max(structures.precision_of(array.dtype) for array in inputs)


def launch(kind: Format, inputs: tuple[mx.array, ...], shape: tuple[int, ...], dtype: mx.Dtype) -> Launch:
    """What identifies a class of shapes; a source on the CPU is not launched over threads."""
    settings = kind.settings(*inputs)
    template = () if settings is None else tuple(settings._asdict().items())
    return Launch((1, 1, 1), (1, 1, 1), shape, dtype, template)


def _promoted(x: mx.array, weight: mx.array) -> mx.Dtype:
    return x.dtype if x.dtype == weight.dtype else mx.float32


def _dtype(kind: Format, inputs: tuple[mx.array, ...]) -> mx.Dtype:
    return _promoted(inputs[0], inputs[1]) if kind is DENSE else inputs[0].dtype


def _kernel(kind: Format, precision: int, reference: Function) -> Kernel:
    def shape(*inputs: mx.array) -> Launch:
        x, weight = inputs[:2]
        return launch(kind, inputs, (*x.shape[:-1], weight.shape[0]), _dtype(kind, inputs))

    def supports(*inputs: mx.array) -> bool:
        x, weight = inputs[:2]
        fits = x.ndim >= 1 and all(array.ndim == 2 for array in inputs[1:]) and weight.shape[0] > 0
        return fits and kind.takes(*inputs) and precision_of(inputs) == precision

    def cpu(*inputs: mx.array) -> mx.array | None:
        return product(inputs[0], kind.matrix(*inputs), precision, _dtype(kind, inputs))

    def definition(*inputs: mx.array) -> mx.array:
        return (inputs[0].astype(mx.float32) @ kind.floats(*inputs).T).astype(_dtype(kind, inputs))

    def samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        keys = mx.random.split(key)
        found = []
        for columns, weights in kind.samples(keys[0], ()):
            if precision_of((mx.zeros((), dtype), *weights)) == precision:
                x = mx.random.normal((max(_SAMPLE_ROWS), columns), key=keys[1]).astype(dtype)
                found += [(x[:rows], *weights) for rows in _SAMPLE_ROWS]
        return found

    return Kernel(
        name(kind, precision),
        reference,
        launch=shape,
        sample_inputs=samples,
        cpu=cpu,
        tolerance=TOLERANCES[precision],
        supports=supports,
        definition=definition,
    )


def name(kind: Format, precision: int) -> str:
    return f"{kind.name}_product" + {EXACT: "", CLOSE: "_close", ROUNDED: "_rounded"}[precision]


def _dense(x: mx.array, weight: mx.array) -> mx.array:
    return x @ weight.T


# In float32, as the sources compute: sums in half precision would be further from these than a check allows.
def _affine(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
    found = packing(x, weight, scales)
    assert found is not None
    wide = scales.astype(mx.float32), biases.astype(mx.float32)
    y = mx.quantized_matmul(x.astype(mx.float32), weight, *wide, True, found.group_size, found.bits)
    return y.astype(x.dtype)


def _mxfp4(x: mx.array, weight: mx.array, scales: mx.array) -> mx.array:
    wide = x.astype(mx.float32)
    y = mx.quantized_matmul(wide, weight, scales, None, True, MXFP4.group_size, MXFP4.bits, "mxfp4")
    return y.astype(x.dtype)


_KERNELS = {
    (kind, precision): _kernel(kind, precision, reference)
    for kind, reference in ((DENSE, _dense), (AFFINE, _affine), (MXFP4_FORMAT, _mxfp4))
    for precision in (EXACT, CLOSE, ROUNDED)
}
