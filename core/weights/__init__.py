"""Weights: maps between a checkpoint's tensors and a model's parameters, the plan of a load, and its execution.

Knows names, shapes and dtypes; knows no tokens and no architecture.
"""

from core.weights.invert import checkpoint_tensors
from core.weights.plan import Entry, Mismatch, Plan
from core.weights.quantization import Quantization, QuantizationConfig
from core.weights.rules import Concat, Source, Stack, WeightMap

__all__ = [
    "Concat",
    "Entry",
    "Mismatch",
    "Plan",
    "Quantization",
    "QuantizationConfig",
    "Source",
    "Stack",
    "WeightMap",
    "checkpoint_tensors",
]
