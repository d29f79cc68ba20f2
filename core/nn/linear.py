"""Linear layers: several projections in one matrix, and one matrix for each expert."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.kernels.expert_products import dense_experts
from core.kernels.products import dense_product
from core.nn.quantized import QuantizedExpertLinear, QuantizedLinear, row


class FusedLinear(nn.Module):
    """Several projections of one input, computed as one matrix product.

    A checkpoint stores the parts separately. If they agree in quantization, bias and dtype, their rows are concatenated
    when they are loaded (quantization groups lie along the input axis, so rows can be joined). If a mixed recipe makes
    them differ, ``regroup`` splits the layer into one product for each group that agrees. The order of the parts never
    changes.

    Args:
        input_dims: features of the input.
        parts: name → output features, in order.
        bias: add a bias to each part.
        experts: make each part a stack of so many experts' matrices (``ExpertLinear``).
    """

    def __init__(
        self, input_dims: int, parts: Mapping[str, int], *, bias: bool = False, experts: int | None = None
    ) -> None:
        super().__init__()
        self._parts = dict(parts)
        self._input_dims = input_dims
        self._bias = bias
        self._experts = experts
        self._groups: tuple[tuple[str, ...], ...] = ()
        self._whole = True
        self.linears: list[nn.Module] = []
        self.regroup([tuple(parts)])

    @property
    def parts(self) -> dict[str, int]:
        """Name → output features, in order."""
        return dict(self._parts)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The parts that each of ``linears`` holds."""
        return self._groups

    def regroup(self, groups: Sequence[Sequence[str]]) -> None:
        """Replaces ``linears`` by new, unquantized ones, one for each group of part names."""
        self._groups = tuple(tuple(group) for group in groups)
        self._whole = self._groups == (tuple(self._parts),)
        self.linears = [self._linear(sum(self._parts[name] for name in group)) for group in self._groups]

    def _linear(self, output_dims: int) -> nn.Module:
        if self._experts is None:
            return Linear(self._input_dims, output_dims, bias=self._bias)
        return ExpertLinear(self._experts, self._input_dims, output_dims, bias=self._bias)

    def __call__(self, x: mx.array, *routing: Any) -> list[mx.array]:
        """The parts' outputs in order; ``x`` is ``[..., input_dims]``. Experts take their routing as well."""
        if self._whole:
            return _split(self.linears[0](x, *routing), list(self._parts.values()))
        outputs: dict[str, mx.array] = {}
        for group, linear in zip(self._groups, self.linears, strict=True):
            pieces = _split(linear(x, *routing), [self._parts[name] for name in group])
            outputs.update(zip(group, pieces, strict=True))
        return [outputs[name] for name in self._parts]

    def joined(self, x: mx.array, *routing: Any) -> mx.array:
        """The parts' outputs in order, in one array ``[..., sum of parts]``."""
        if self._whole:
            output: mx.array = self.linears[0](x, *routing)
            return output
        return mx.concatenate(self(x, *routing), axis=-1)


def _split(x: mx.array, sizes: list[int]) -> list[mx.array]:
    if len(sizes) == 1:
        return [x]
    bounds = list(itertools.accumulate(sizes[:-1]))
    return list(mx.split(x, bounds, axis=-1))


class Linear(nn.Linear):
    """``mlx.nn.Linear``, whose quantized form is ``core.nn.QuantizedLinear``; on a CPU the CPU library multiplies."""

    def __call__(self, x: mx.array) -> mx.array:
        """``x``: ``[..., input_dims]``; returns ``[..., output_dims]``."""
        y = dense_product(x, self.weight)
        if y is None:
            return super().__call__(x)
        return y + self.bias if "bias" in self else y

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> nn.Module:
        """The same layer with quantized weights; called by ``mlx.nn.quantize``."""
        made: nn.Module = super().to_quantized(group_size, bits, mode, quantize_input)
        return QuantizedLinear.of(made) if type(made) is nn.QuantizedLinear else made


def linear(x: mx.array, weight: mx.array) -> mx.array:
    """``x @ weight.T``, by the CPU library where it supports that product."""
    y = dense_product(x, weight)
    return x @ weight.T if y is None else y


class ExpertLinear(nn.Module):
    """One matrix for each expert, of which each row of the input uses one.

    Args:
        experts: number of matrices.
        input_dims, output_dims: features.
        bias: add a bias for each expert.
    """

    def __init__(self, experts: int, input_dims: int, output_dims: int, *, bias: bool = False) -> None:
        super().__init__()
        bound = math.sqrt(1 / input_dims)
        self.weight = mx.random.uniform(-bound, bound, shape=(experts, output_dims, input_dims))
        if bias:
            self.bias = mx.zeros((experts, output_dims))

    def __call__(self, x: mx.array, indices: mx.array | int, sorted_indices: bool = False) -> mx.array:
        """Applies expert ``indices[...]`` to ``x[...]``.

        Args:
            x: ``[..., rows, input_dims]``, its leading axes broadcast against ``indices``.
            indices: unsigned integers ``[...]``, or the one expert of all rows.
            sorted_indices: the indices ascend, which lets the product visit each expert once.

        Returns:
            ``[..., rows, output_dims]``.
        """
        if isinstance(indices, int):
            y = linear(x, row(self.weight, indices))
            return y + row(self.bias, indices) if "bias" in self else y
        found = dense_experts(x, self.weight, indices)
        y = self._gathered(x, indices, sorted_indices) if found is None else found
        return y + self.bias[indices][..., None, :] if "bias" in self else y

    def _gathered(self, x: mx.array, indices: mx.array, sorted_indices: bool) -> mx.array:
        weight = self.weight.swapaxes(-1, -2)
        if weight.dtype == mx.float32 or mx.default_device().type != mx.DeviceType.cpu:
            return mx.gather_mm(x, weight, rhs_indices=indices, sorted_indices=sorted_indices)
        # MLX's CPU backend gathers in float32 only. Loaded models compute in it there; this is for models cast by hand.
        wide = x.astype(mx.float32), weight.astype(mx.float32)
        return mx.gather_mm(*wide, rhs_indices=indices, sorted_indices=sorted_indices).astype(x.dtype)

    def to_quantized(self, group_size: int | None = None, bits: int | None = None, mode: str = "affine") -> nn.Module:
        """The same layer with quantized weights; called by ``mlx.nn.quantize``."""
        experts, output_dims, input_dims = self.weight.shape
        layer = QuantizedExpertLinear(experts, input_dims, output_dims, group_size, bits, mode, bias="bias" in self)
        layer.weight, layer.scales, *biases = mx.quantize(self.weight, group_size, bits, mode=mode)
        if biases:
            layer.biases = biases[0]
        if "bias" in self:
            layer.bias = self.bias
        return layer
