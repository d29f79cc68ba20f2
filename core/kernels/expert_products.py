"""Products in which each row of the input chooses one matrix of a stack, of every type that the CPU library reads.

As in ``core.kernels.products``, the functions give None wherever MLX is to multiply.
"""

from __future__ import annotations

import math

import mlx.core as mx

from core.cpu.products import broadcast, expert_products
from core.cpu.structures import CLOSE, EXACT, ROUNDED
from core.kernels.fused import Launch
from core.kernels.gradient import Function
from core.kernels.kernel import Kernel
from core.kernels.products import TOLERANCES, call, launch, name, precision_of
from core.kernels.weights import AFFINE, DENSE, MXFP4, MXFP4_FORMAT, Format, packing

_SAMPLE_EXPERTS = 3


def dense_experts(x: mx.array, weight: mx.array, indices: mx.array) -> mx.array | None:
    """``x[...] @ weight[indices[...]].T``, in the dtype of ``x``; None where MLX is to compute it.

    Args:
        x: ``[..., rows, columns]``, its leading axes broadcast against ``indices``.
        weight: floats ``[experts, rows, columns]``.
        indices: uint32 ``[...]``.
    """
    return call(_KERNELS, DENSE, (x, weight, indices), _multiplications(x, weight, indices))


def packed_experts(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array | None, indices: mx.array
) -> mx.array | None:
    """As ``dense_experts``, for a stack of quantized matrices ``[experts, rows, ...]``; no biases mean mxfp4."""
    size = _multiplications(x, weight, indices)
    if biases is None:
        return call(_KERNELS, MXFP4_FORMAT, (x, weight, scales, indices), size)
    return call(_KERNELS, AFFINE, (x, weight, scales, biases, indices), size)


def _multiplications(x: mx.array, weight: mx.array, indices: mx.array) -> int:
    return max(x.size, indices.size * math.prod(x.shape[-2:])) * weight.shape[1]


def _kernel(kind: Format, precision: int, reference: Function) -> Kernel:
    def shape(*inputs: mx.array) -> Launch:
        x, weight, indices = inputs[0], inputs[1], inputs[-1]
        lead = broadcast(x.shape[:-2], indices.shape) or ()
        return launch(kind, inputs[:-1], (*lead, x.shape[-2], weight.shape[1]), x.dtype)

    def supports(*inputs: mx.array) -> bool:
        x, weights, indices = inputs[0], inputs[1:-1], inputs[-1]
        fits = x.ndim >= 2 and all(array.ndim == 3 for array in weights) and indices.dtype == mx.uint32
        meet = fits and broadcast(x.shape[:-2], indices.shape) is not None
        return meet and kind.takes(*inputs[:-1]) and precision_of(inputs) == precision

    def cpu(*inputs: mx.array) -> mx.array | None:
        return expert_products(
            inputs[0], inputs[-1], kind.matrix(*inputs[:-1]), experts=inputs[1].shape[0], precision=precision
        )

    def definition(*inputs: mx.array) -> mx.array:
        x, floats = inputs[0], kind.floats(*inputs[:-1])
        return (x.astype(mx.float32) @ floats[inputs[-1]].swapaxes(-1, -2)).astype(x.dtype)

    def samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        keys = mx.random.split(key, 3)
        few = mx.random.randint(0, _SAMPLE_EXPERTS, (5, 2), key=keys[0]).astype(mx.uint32)
        many = mx.repeat(mx.arange(_SAMPLE_EXPERTS, dtype=mx.uint32), 9)  # in order, as more rows of one product
        found = []
        for columns, weights in kind.samples(keys[1], (_SAMPLE_EXPERTS,)):
            if precision_of((mx.zeros((), dtype), *weights)) == precision:
                x = mx.random.normal((many.size, 1, columns), key=keys[2]).astype(dtype)
                found += [(x[:5, None], *weights, few), (x, *weights, many)]
        return found

    return Kernel(
        f"expert_{name(kind, precision)}",
        reference,
        launch=shape,
        sample_inputs=samples,
        cpu=cpu,
        tolerance=TOLERANCES[precision],
        supports=supports,
        definition=definition,
    )


def _dense(x: mx.array, weight: mx.array, indices: mx.array) -> mx.array:
    wide = x.astype(mx.float32), weight.astype(mx.float32).swapaxes(-1, -2)  # what MLX gathers on the CPU
    return mx.gather_mm(*wide, rhs_indices=indices).astype(x.dtype)


def _affine(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, indices: mx.array) -> mx.array:
    found = packing(x, weight, scales)
    assert found is not None
    wide = scales.astype(mx.float32), biases.astype(mx.float32)
    settings = found.group_size, found.bits
    return mx.gather_qmm(x.astype(mx.float32), weight, *wide, None, indices, True, *settings).astype(x.dtype)


def _mxfp4(x: mx.array, weight: mx.array, scales: mx.array, indices: mx.array) -> mx.array:
    settings = MXFP4.group_size, MXFP4.bits, "mxfp4"
    return mx.gather_qmm(x.astype(mx.float32), weight, scales, None, None, indices, True, *settings).astype(x.dtype)


_KERNELS = {
    (kind, precision): _kernel(kind, precision, reference)
    for kind, reference in ((DENSE, _dense), (AFFINE, _affine), (MXFP4_FORMAT, _mxfp4))
    for precision in (EXACT, CLOSE, ROUNDED)
}
