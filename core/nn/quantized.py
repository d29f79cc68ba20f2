"""Linear layers with quantized weights, dense and as a stack of experts.

Few rows are multiplied with packed weights. For many rows on CUDA, the weights become floats first, once, and the
product is dense: there it is several times faster than one that unpacks as it goes.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from core.device import backend
from core.kernels import products
from core.kernels.dequantize import dequantize
from core.kernels.expert_products import packed_experts
from core.kernels.few_rows import MOST_ROWS, few_rows_kernel

_SMALLEST_GROUP = 32  # the smallest of MLX's affine mode


def _product(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    group_size: int,
    bits: int,
    mode: str,
) -> mx.array:
    """``x`` times the transposed matrix, computed in the fastest way for its number of rows."""
    y = products.packed_product(x, weight, scales, biases)
    if y is not None:
        return y
    rows = x.size // x.shape[-1]
    if _densely(rows):
        return x @ dequantize(weight, scales, biases, group_size, bits, mode).T
    kernel = few_rows_kernel(rows, weight, bits, group_size, mode)
    if kernel is not None and biases is not None and kernel.takes(x, weight, scales, biases):
        return kernel(x, weight, scales, biases)
    return packed_product(x, weight, scales, biases, group_size, bits, mode)


def packed_product(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    group_size: int,
    bits: int,
    mode: str = "affine",
    *,
    transpose: bool = True,
) -> mx.array:
    """``mx.quantized_matmul``, correct also where a row of the matrix is one group.

    In that case, MLX 0.32.4 uses a kernel for compute capability 9.0 that gives wrong numbers and NaN
    (``supports_qmm_sm90`` is true in this case only). The same matrix in groups of half the size, with each scale and
    bias twice, is computed by another kernel.
    """
    one_group = mode == "affine" and transpose and scales.shape[-1] == 1 and group_size > _SMALLEST_GROUP
    if one_group and biases is not None and backend() == "cuda":
        scales, biases = (mx.contiguous(mx.repeat(array, 2, axis=-1)) for array in (scales, biases))
        group_size //= 2
    return mx.quantized_matmul(x, weight, scales, biases, transpose, group_size, bits, mode)


def row(array: mx.array, index: int) -> mx.array:
    """``array[index]`` as a view: MLX copies for an index, but not for a slice."""
    return array[index : index + 1].squeeze(0)


def _densely(rows: int) -> bool:
    return rows > MOST_ROWS and backend() == "cuda"


class QuantizedLinear(nn.QuantizedLinear):
    """``mlx.nn.QuantizedLinear``, for any number of rows.

    Scales may have a wider float dtype than the activations: the product is computed in that dtype, and returned in the
    activations'.
    """

    @classmethod
    def of(cls, layer: nn.QuantizedLinear) -> QuantizedLinear:
        """The same layer, with the same parameters."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.group_size, made.bits, made.mode = layer.group_size, layer.bits, layer.mode
        for name, value in layer.items():
            made[name] = value
        made.freeze()
        return made

    def __call__(self, x: mx.array) -> mx.array:
        """``x``: ``[..., input_dims]``; returns ``[..., output_dims]`` in the dtype of ``x``."""
        y = _product(x, self.weight, self.scales, self.get("biases"), self.group_size, self.bits, self.mode)
        return (y + self.bias if "bias" in self else y).astype(x.dtype)


class QuantizedExpertLinear(nn.Module):
    """``ExpertLinear`` with quantized weights; as in ``mlx.nn.QuantizedLinear``, its parameters are frozen."""

    def __init__(
        self,
        experts: int,
        input_dims: int,
        output_dims: int,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        bound = math.sqrt(1 / input_dims)
        weight = mx.random.uniform(-bound, bound, shape=(experts, output_dims, input_dims))
        self.weight, self.scales, *biases = mx.quantize(weight, group_size, bits, mode=mode)
        if biases:
            self.biases = biases[0]
        if bias:
            self.bias = mx.zeros((experts, output_dims))
        # quantize has chosen the mode's defaults, so read them from the shapes.
        self.bits = bits or self.weight.shape[-1] * 32 // input_dims
        self.group_size = group_size or input_dims // self.scales.shape[-1]
        self.mode = mode
        self.freeze()

    def __call__(self, x: mx.array, indices: mx.array | int, sorted_indices: bool = False) -> mx.array:
        """As ``ExpertLinear``; with scales of a wider float dtype than ``x``, computes in theirs and returns that of
        ``x``."""
        if isinstance(indices, int):
            biases = row(self.biases, indices) if "biases" in self else None
            packed = row(self.weight, indices), row(self.scales, indices), biases
            y = _product(x, *packed, self.group_size, self.bits, self.mode).astype(x.dtype)
            return y + row(self.bias, indices) if "bias" in self else y
        found = packed_experts(x, self.weight, self.scales, self.get("biases"), indices)
        y = self._gathered(x, indices, sorted_indices) if found is None else found
        return y + self.bias[indices][..., None, :] if "bias" in self else y

    def _gathered(self, x: mx.array, indices: mx.array, sorted_indices: bool) -> mx.array:
        return mx.gather_qmm(
            x,
            self.weight,
            self.scales,
            self.get("biases"),
            rhs_indices=indices,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            sorted_indices=sorted_indices,
        ).astype(x.dtype)
