"""Linear layers with quantized weights, dense and as a stack of experts.

Few rows read packed weights; many rows on a GPU make floats of them first, once, and multiply densely: the dense
product is several times faster there than one that unpacks as it goes. Knows MLX's own formats; knows no names.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from core.device import backend
from core.kernels.dequantize import dequantize

_DENSE_FROM = 128
"""Rows from which MLX's CUDA backend multiplies faster by a matrix that it has dequantized (benchmarks/LOG.md, 5)."""


def _densely(rows: int) -> bool:
    return rows >= _DENSE_FROM and backend() == "cuda"


class QuantizedLinear(nn.QuantizedLinear):
    """``mlx.nn.QuantizedLinear``, for any number of rows.

    Scales may have a wider float type than the activations: the product is computed in that, and returned in theirs.
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
        if not _densely(x.size // x.shape[-1]):
            return super().__call__(x).astype(x.dtype)
        y = x @ self.floats().T
        return (y + self.bias if "bias" in self else y).astype(x.dtype)

    def floats(self) -> mx.array:
        """The matrix ``[output_dims, input_dims]`` in the dtype of the scales, unevaluated."""
        biases = self.get("biases")
        return dequantize(self.weight, self.scales, biases, self.group_size, self.bits, self.mode)


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
        # quantize has chosen the mode's defaults: read them off the shapes.
        self.bits = bits or self.weight.shape[-1] * 32 // input_dims
        self.group_size = group_size or input_dims // self.scales.shape[-1]
        self.mode = mode
        self.freeze()

    def __call__(self, x: mx.array, indices: mx.array | None = None, sorted_indices: bool = False) -> mx.array:
        """As ``ExpertLinear``; scales of a wider float type than ``x`` compute in theirs, and return that of ``x``."""
        if indices is None:
            biases = self.get("biases")
            weight = dequantize(self.weight, self.scales, biases, self.group_size, self.bits, self.mode)
            y = (x @ weight.swapaxes(-1, -2)).astype(x.dtype)
            return y + self.bias[:, None] if "bias" in self else y
        y = mx.gather_qmm(
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
        return y + self.bias[indices][..., None, :] if "bias" in self else y
