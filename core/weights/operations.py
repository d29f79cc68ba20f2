"""Quantizing and dequantizing as operations of a plan: their inputs, shapes and results, in MLX's own formats."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import mlx.core as mx

from core.weights.dtypes import BYTES, FLOATS, PACKED
from core.weights.nodes import Joined, Node, Operation, Stacked
from core.weights.quantization import Quantization


@dataclass(frozen=True, slots=True)
class Quantized(Operation):
    """One tensor of a float matrix's quantized form.

    The matrix is quantized in the dtype of the file. For bfloat16 weights, MLX's own converter writes bfloat16 scales;
    these are equal to them bit by bit.
    """

    source: Node
    settings: Quantization
    role: str
    finite: bool = True  # NaN in a group is lost in its scale

    @property
    def label(self) -> str:
        return "quantize"

    @property
    def parts(self) -> tuple[Node, ...]:
        return (self.source,)

    @property
    def key(self) -> Hashable:
        return Quantized, self.source, self.settings

    def inputs(self, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...] | None, tuple[str, ...]]]:
        return [((*shape[:-1], unpacked(shape[-1], self.settings, self.role)), tuple(FLOATS))]

    def storage(self, found: str) -> str:
        if self.role == "weight":
            return PACKED
        return found if self.settings.mode == "affine" else BYTES

    def compute(self, *arrays: mx.array) -> dict[str, mx.array]:
        settings = self.settings
        made = mx.quantize(arrays[0], settings.group_size, settings.bits, mode=settings.mode)
        return dict(zip(("weight", "scales", "biases"), made, strict=False))


def quantized(source: Node, settings: Quantization, role: str) -> Node:
    """A tensor of the quantized form of ``source``, part by part.

    Quantization groups lie along the input axis, so rows can be joined after it. Parts that are joined or stacked are
    therefore quantized first: at most one of them is held twice in full precision. Any other operation comes first.
    """
    if isinstance(source, Joined | Stacked):
        return replace(source, parts=tuple(quantized(part, settings, role) for part in source.parts))
    return Quantized(source, settings, role)


@dataclass(frozen=True, slots=True)
class Dequantized(Operation):
    """The float matrix of a quantized one.

    Attributes:
        parts: its weight, scales and, where the mode has them, biases.
        dtype: of the floats, as safetensors spells it: that of the scales in the file.
    """

    sources: tuple[Node, ...]
    settings: Quantization
    dtype: str
    role: str = "weight"

    @property
    def label(self) -> str:
        return "dequantize"

    @property
    def parts(self) -> tuple[Node, ...]:
        return self.sources

    @property
    def key(self) -> Hashable:
        return self

    def inputs(self, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...] | None, tuple[str, ...]]]:
        rows, columns = shape[:-1], shape[-1]
        floats = tuple(FLOATS) if self.settings.mode == "affine" else (BYTES,)
        groups = (*rows, columns // self.settings.group_size)
        words = (*rows, columns * self.settings.bits // 32)
        return [(words, (PACKED,)), *[(groups, floats)] * (len(self.sources) - 1)]

    def storage(self, found: str) -> str:
        return self.dtype

    def compute(self, *arrays: mx.array) -> dict[str, mx.array]:
        settings = self.settings
        weight, scales, *biases = arrays
        biased = biases[0] if biases else None
        made = mx.dequantize(weight, scales, biased, settings.group_size, settings.bits, mode=settings.mode)
        return {"weight": made.astype(FLOATS[self.dtype])}


def unpacked(columns: int, settings: Quantization, role: str) -> int:
    """Input features of a matrix whose quantized tensor of this role has ``columns`` columns."""
    return columns * 32 // settings.bits if role == "weight" else columns * settings.group_size
