"""Reads the quantization settings of a config: MLX's own block, with overrides for single layers, or another tool's.

Which tensors are quantized is decided by the headers, in the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.errors import QuantizationError, first_line
from core.weights.packing import Packing, packing_of

_AS_PUBLISHED = "Copy the block from the config this checkpoint was published with."
_SETTINGS = frozenset({"bits", "group_size", "mode", "global_scale"})


@dataclass(frozen=True, slots=True)
class Quantization:
    """How one matrix is quantized: ``bits`` per element, ``group_size`` elements of a row with one scale, MLX's
    ``mode``."""

    bits: int
    group_size: int
    mode: str = "affine"

    def __str__(self) -> str:
        return f"{self.bits}-bit, groups of {self.group_size}" + ("" if self.mode == "affine" else f", {self.mode}")


@dataclass(frozen=True)
class QuantizationConfig:
    """The ``quantization`` block of a config.

    Attributes:
        default: for every quantized layer without an override.
        overrides: path in the checkpoint → its own settings, or None where the block says ``false``.
        packing: how another tool has packed the integers; None for MLX's own packing.
    """

    default: Quantization
    overrides: Mapping[str, Quantization | None] = field(default_factory=dict)
    packing: Packing | None = None

    def of(self, path: str) -> Quantization | None:
        """The settings of one layer; None where an override turns quantization off."""
        return self.overrides.get(path, self.default)

    @classmethod
    def from_config(cls, raw: Mapping[str, Any]) -> QuantizationConfig | None:
        """Reads ``quantization``, else ``quantization_config``; None where a config has neither.

        Raises:
            QuantizationError: another tool's method, or settings that the installed MLX does not have.
        """
        key = "quantization" if raw.get("quantization") is not None else "quantization_config"
        block = raw.get(key)
        if block is None:
            return None
        if not isinstance(block, Mapping):
            raise QuantizationError(
                f"key {key!r} is not an object",
                expected="an object with bits and group_size",
                found=type(block).__name__,
                hint=_AS_PUBLISHED,
            )
        # Another tool's bits and group_size have the same names as MLX's, but describe another packing.
        if block.get("quant_method") is not None:
            packing = packing_of(block, key)
            return cls(_read(block, key, None), packing=packing)
        default = _read(block, key, None)
        overrides: dict[str, Quantization | None] = {}
        for path, value in block.items():
            if path in _SETTINGS:
                continue
            if isinstance(value, Mapping):
                overrides[path] = _read(value, f"{key}.{path}", default)
            elif isinstance(value, bool):
                overrides[path] = default if value else None
        return cls(default, overrides)


def _read(block: Mapping[str, Any], key: str, default: Quantization | None) -> Quantization:
    mode = block.get("mode", default.mode if default else "affine")
    if block.get("global_scale"):
        raise QuantizationError(
            f"key '{key}.global_scale' asks for a scale of whole matrices, which is not supported",
            hint="MLX's product with quantized weights takes none; convert the model without it.",
        )
    values: dict[str, int] = {}
    for name in ("bits", "group_size"):
        value = block.get(name, getattr(default, name, None))
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise QuantizationError(
                f"key '{key}.{name}' is missing" if value is None else f"key '{key}.{name}' is not a positive integer",
                expected="for instance 4" if name == "bits" else "for instance 64",
                found=None if value is None else repr(value),
                hint=_AS_PUBLISHED,
            )
        values[name] = value
    if not isinstance(mode, str):
        raise QuantizationError(f"key '{key}.mode' is not a string", found=repr(mode), hint=_AS_PUBLISHED)
    settings = Quantization(values["bits"], values["group_size"], mode)
    problem = refusal(settings)
    if problem is not None:
        raise QuantizationError(
            f"key {key!r} asks for {settings}, which the installed MLX {version('mlx')} does not have",
            found=problem,
            hint="Upgrade MLX, or load a conversion with other settings.",
        )
    return settings


@lru_cache
def refusal(settings: Quantization) -> str | None:
    """MLX's error message for the settings, from a trial with a tiny matrix; None when it accepts them."""
    try:
        mx.quantize(mx.zeros((1, settings.group_size * 32)), settings.group_size, settings.bits, mode=settings.mode)
    except ValueError as error:
        return first_line(error)
    except (TypeError, RuntimeError):  # a number too large for MLX's arguments
        return "a number that is out of range"
    return None


@lru_cache
def roles(settings: Quantization) -> tuple[str, ...]:
    """The tensors of a quantized matrix: not every mode has biases."""
    made = mx.quantize(mx.zeros((1, settings.group_size * 32)), settings.group_size, settings.bits, mode=settings.mode)
    return ("weight", "scales", "biases")[: len(made)]


def settings_of(model: nn.Module) -> list[Quantization]:
    """The settings of a model's quantized matrices, sorted, each once.

    They are read from the modules, so they are right also for a model that was quantized after it was loaded.
    """
    found = {
        Quantization(module.bits, module.group_size, getattr(module, "mode", "affine"))
        for _, module in model.named_modules()
        if "scales" in module
    }
    return sorted(found, key=lambda settings: (settings.bits, settings.group_size, settings.mode))
