"""How a checkpoint is quantized, kind of matrix by kind of matrix, from its headers and its config alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from core.checkpoint import TensorInfo
from core.cli.inspection import MatrixKind, QuantizationFacts
from core.errors import CoreError
from core.weights import Quantization, QuantizationConfig
from core.weights.dtypes import PACKED
from core.weights.summary import summarise

MLX = "mlx"
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


def recipe_of(tensors: Mapping[str, TensorInfo], raw_config: Mapping[str, Any]) -> QuantizationFacts | None:
    """The settings of every kind of matrix; None where nothing is, or is said to be, quantized."""
    config = _settings(raw_config)
    scaled = [name for name in tensors if name.endswith(".scales")]
    if config is None:
        method = _foreign_method(raw_config) or ("unknown" if scaled else None)
        return None if method is None else QuantizationFacts(method, ())
    groups: dict[tuple[str, Quantization | None], list[str]] = {}
    for name, info in tensors.items():
        matrix, _, role = name.rpartition(".")
        if role == "weight" and len(info.shape) >= 2:
            settings = config.of(matrix) if f"{matrix}.scales" in tensors else None
            groups.setdefault((_INDEX.sub("*", matrix), settings), []).append(matrix)
    matrices = [_kind(kind, settings, names) for (kind, settings), names in groups.items()]
    return QuantizationFacts(MLX, tuple(sorted(matrices, key=lambda found: (found.kind, found.bits or 0))))


def count_parameters(tensors: Mapping[str, TensorInfo], raw_config: Mapping[str, Any]) -> int:
    """Weights in a checkpoint: elements of quantized matrices before they were packed, and no scales."""
    config = _settings(raw_config)
    total = 0
    for name, info in tensors.items():
        matrix, _, role = name.rpartition(".")
        if f"{matrix}.scales" not in tensors:
            total += math.prod(info.shape)
        elif role == "weight":
            settings = None if config is None else config.of(matrix)
            packed = settings is not None and info.dtype == PACKED
            total += math.prod(info.shape) * 32 // settings.bits if packed and settings else math.prod(info.shape)
        elif role == "bias":
            total += math.prod(info.shape)
    return total


def _settings(raw_config: Mapping[str, Any]) -> QuantizationConfig | None:
    try:
        found = QuantizationConfig.from_config(raw_config)
    except CoreError:  # said by the load that is prepared later
        return None
    return None if found is None or found.packing is not None else found


def _foreign_method(raw_config: Mapping[str, Any]) -> str | None:
    block = raw_config.get("quantization_config") or raw_config.get("quantization")
    if not isinstance(block, Mapping):
        return None
    return str(block.get("quant_method") or "unknown")


def _kind(kind: str, settings: Quantization | None, names: list[str]) -> MatrixKind:
    shown = summarise(names).partition(" (")[0]
    if settings is None:
        return MatrixKind(kind, shown, len(names), None, None, None)
    return MatrixKind(kind, shown, len(names), settings.bits, settings.group_size, settings.mode)
