"""Loads weights: maps between a checkpoint's tensors and a model's parameters, the plan of a load, and its
execution."""

import core.needs_mlx  # noqa: F401
from core.weights.invert import checkpoint_tensors
from core.weights.plan import Entry, Mismatch, Plan
from core.weights.quantization import Quantization, QuantizationConfig
from core.weights.rules import Concat, Fused, Permute, Source, Stack, WeightMap, Whole

__all__ = [
    "Concat",
    "Entry",
    "Fused",
    "Mismatch",
    "Permute",
    "Plan",
    "Quantization",
    "QuantizationConfig",
    "Source",
    "Stack",
    "WeightMap",
    "Whole",
    "checkpoint_tensors",
]
