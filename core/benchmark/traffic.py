"""Counts the bytes that a decode step of one sequence must read."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from core.nn import CacheSpec, Decoder, ExpertLinear, QuantizedExpertLinear
from core.weights.tree import own_arrays


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(array.nbytes for module in model.modules() for array in own_arrays(module).values())


def parameter_count(model: nn.Module) -> int:
    """Number of weights: the elements of quantized matrices, and not their scales."""
    total = 0
    for module in model.modules():
        arrays = own_arrays(module)
        if "scales" in arrays:
            total += arrays["weight"].size * 32 // module.bits
            arrays = {name: array for name, array in arrays.items() if name == "bias"}
        total += sum(array.size for array in arrays.values())
    return total


def step_weight_bytes(model: Decoder, active_experts: int | None) -> int:
    """Bytes of the weights that one token needs.

    Only the experts that it uses count; of the embedding, one row, unless the head multiplies by the whole matrix.

    Args:
        model: with its weights.
        active_experts: experts a token uses; None counts all of them.
    """
    tied = "lm_head" not in model
    total = 0
    for module in model.modules():
        size = sum(array.nbytes for array in own_arrays(module).values())
        if module is model.embed_tokens and not tied:
            size //= model.vocab_size
        elif isinstance(module, ExpertLinear | QuantizedExpertLinear) and active_experts is not None:
            size = size * active_experts // module.weight.shape[0]
        total += size
    return total


def step_cache_bytes(specs: Sequence[CacheSpec], context: int, dtype: mx.Dtype) -> int:
    """Bytes of the cache that a token attends to; in a sliding window, at most those of its tokens."""
    return sum(spec.bytes_at(context, dtype) for spec in specs)
