"""Chooses the dtype of activations, and the dtype in which each parameter is kept in memory.

On a CPU, activations are float32 wherever that is fastest for the CPU library or MLX. The library converts weights as
it reads them, so matrices, scales and biases keep the dtype of the file. That takes half the memory, and twice the
speed where memory bandwidth is the limit.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint import TensorInfo
from core.kernels.device import cpu_sources
from core.nn import ExpertLinear
from core.weights.dtypes import FLOATS
from core.weights.fit import Parameter
from core.weights.nodes import leaves

_OF_MATRICES = ("scales", "biases")


def compute_dtype(model: nn.Module, parameters: list[Parameter], tensors: Mapping[str, TensorInfo]) -> mx.Dtype:
    """The default dtype of activations.

    It is the dtype of most of the checkpoint's elements. On a CPU with the CPU library it is float32. On a CPU without
    the library, it is float32 for models with quantized products or experts, which MLX computes slowly in half
    precision, or not at all.
    """
    if mx.default_device().type == mx.DeviceType.cpu and (
        cpu_sources()
        or any(parameter.settings for parameter in parameters)
        or any(isinstance(module, ExpertLinear) for module in model.modules())
    ):
        return mx.float32
    sizes: dict[str, int] = {}
    for parameter in parameters:
        for name in leaves(parameter.source):
            info = tensors.get(name)
            if info is not None and info.dtype in FLOATS:
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return FLOATS[max(sizes, key=lambda key: sizes[key])] if sizes else mx.float32


def memory_dtype(parameter: Parameter, storage: str, compute: mx.Dtype) -> mx.Dtype:
    """The default dtype of a float parameter in memory.

    Args:
        parameter: the parameter.
        storage: the dtype in the file, as safetensors spells it.
        compute: the dtype of activations.
    """
    matrix = parameter.role in _OF_MATRICES or (parameter.role == "weight" and parameter.array.ndim > 1)
    return FLOATS[storage] if matrix and cpu_sources() else compute
