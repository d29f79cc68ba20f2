"""Makes a model of random weights and quantizes it matrix by matrix, so that it need not fit in memory unquantized.

Dtypes are those that a load would choose. Weights are never zeros: a device may be faster with zeros, and a router
would send all tokens to the same experts.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.benchmark.shapes import Shape
from core.device import backend
from core.errors import UsageError
from core.kernels.device import cpu_sources
from core.loading import BuiltModel, build
from core.loading.skeleton import random_state_kept
from core.nn import ExpertLinear
from core.weights import Quantization
from core.weights.quantization import refusal
from core.weights.tree import own_arrays

_SEED = 0
_STORED = mx.bfloat16


def random_model(shape: Shape, dtype: mx.Dtype | None = None) -> tuple[BuiltModel, mx.Dtype]:
    """Makes the model; returns it with its compute dtype.

    Args:
        shape: of the model.
        dtype: compute dtype; None takes that of a load of such a checkpoint in bfloat16, as ``core.weights.compute``
            chooses.

    Raises:
        ConfigError, PluginError: as for ``core.load``.
        UsageError: bits that the installed MLX does not have.
    """
    with random_state_kept():
        mx.random.seed(_SEED)
        built = build(shape.config)
        model = built.model
        experts = any(isinstance(module, ExpertLinear) for module in model.modules())
        library = cpu_sources()
        slow = backend() == "cpu" and (shape.bits is not None or experts)
        compute = dtype or (mx.float32 if library or slow else _STORED)
        model.set_dtype(_STORED)
        if shape.bits is not None:
            _quantize(built, shape.bits, shape.group_size)
        if library and dtype is None:
            model.apply(lambda array: array.astype(compute) if array.ndim == 1 else array)
        else:
            model.set_dtype(compute)  # scales and norms; packed weights do not change
        for module in model.modules():
            mx.eval(own_arrays(module))
            mx.clear_cache()
        mx.eval(model)
    return built, compute


def _quantize(built: BuiltModel, bits: int, group_size: int) -> None:
    problem = refusal(Quantization(bits, group_size))
    if problem is not None:
        raise UsageError("the installed MLX does not have these bits", found=problem)

    def allowed(path: str, module: nn.Module) -> bool:
        fits = hasattr(module, "to_quantized") and module.weight.shape[-1] % group_size == 0
        return fits and built.plugin.quantize_module(built.config, path, module)

    nn.quantize(built.model, group_size=group_size, bits=bits, class_predicate=allowed)
