"""Lists the tensors of a checkpoint to be written, in the order of writing, before any of them is computed.

Shapes are read from a model, evaluated or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from core.errors import WeightsError
from core.weights import Quantization
from core.weights.dtypes import SPELLINGS, spelling
from core.weights.invert import Inverse
from core.weights.nodes import leaves
from core.weights.tree import find


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor to be written.

    Attributes:
        name: in the checkpoint.
        dtype: as stored.
        shape: as stored.
    """

    name: str
    dtype: mx.Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.dtype.size


def tabulate(
    model: nn.Module, found: Mapping[str, Inverse], order: Iterable[str], stored: Callable[[str, mx.Dtype], mx.Dtype]
) -> list[Tensor]:
    """The tensors of a model's parameters.

    Args:
        model: evaluated or not.
        found: parameter → how it becomes tensors.
        order: the parameters, in the order in which they will be written.
        stored: from a parameter's path and dtype to the dtype in the file.

    Raises:
        WeightsError: a parameter has a dtype that safetensors does not have.
    """
    tensors = []
    for parameter in order:
        array = find(model, parameter)
        dtype = stored(parameter, array.dtype)
        if dtype not in SPELLINGS:
            raise WeightsError(f"parameter {parameter!r} cannot be saved", found=spelling(dtype))
        tensors += [Tensor(name, dtype, tuple(part.shape)) for name, part in found[parameter].tensors(array)]
    return tensors


def quantized_paths(model: nn.Module, found: Mapping[str, Inverse]) -> dict[str, Quantization]:
    """Path in the checkpoint of every quantized matrix → its settings, read from the model's modules."""
    return {path: settings for inverse, settings in _quantized(model, found) for path in leaves(inverse.source)}


def count_parameters(model: nn.Module, found: Mapping[str, Inverse]) -> int:
    """Number of weights, counting the elements of quantized matrices and not their scales."""
    packed = {inverse.parameter: settings for inverse, settings in _quantized(model, found)}
    modules = {parameter.rpartition(".")[0] for parameter in packed}
    total = 0
    for parameter, inverse in found.items():
        size = find(model, parameter).size
        if parameter in packed:
            total += size * 32 // packed[parameter].bits
        elif inverse.role == "bias" or parameter.rpartition(".")[0] not in modules:
            total += size
    return total


def _quantized(model: nn.Module, found: Mapping[str, Inverse]) -> Iterator[tuple[Inverse, Quantization]]:
    for parameter, inverse in found.items():
        module = find(model, parameter.rpartition(".")[0]) if inverse.role == "weight" else None
        if isinstance(module, nn.Module) and "scales" in module:
            yield inverse, Quantization(module.bits, module.group_size, module.mode)
