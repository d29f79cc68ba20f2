"""In which dtype a load computes, and in which it keeps each parameter in memory.

On a CPU activations are float32 wherever the CPU library or MLX is fastest so. The library widens weights as it reads
them, so that matrices, scales and biases stay as the file has them: half the memory, and twice the speed where memory
is what binds.
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
    """The dtype of activations, where the caller asks for none.

    It is that of most of the checkpoint's elements. On a CPU it is float32 with the CPU library. Without it, it is
    float32 for what MLX computes slowly in half precision, or not at all: quantized products and experts.
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
    """The dtype of a float parameter in memory, where the caller asks for no dtype of activations.

    Args:
        storage: the dtype in the file, as safetensors spells it.
        compute: the dtype of activations.
    """
    matrix = parameter.role in _OF_MATRICES or (parameter.role == "weight" and parameter.array.ndim > 1)
    return FLOATS[storage] if matrix and cpu_sources() else compute
