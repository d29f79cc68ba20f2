"""Converts GPTQ's and AWQ's packed matrices to MLX's affine form: the same integers in MLX's packing.

Both formats mean ``scale * (integer - zero)``, which is MLX's ``scale * integer + bias`` with ``bias = -scale * zero``.
Formats: AutoGPTQ's ``QuantLinear`` (as transformers reads it) and AutoAWQ's ``WQLinear_GEMM``.

The product of a float16 scale and a zero point is exact in float16 for about half of all pairs, but in float32 for all.
So biases stay in float32, and dequantization is exact, unless the caller asks for the smaller ones. Scales stay in
float32 too, because MLX would convert them for every product.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import mlx.core as mx

from core.errors import QuantizationError
from core.weights.dtypes import PACKED
from core.weights.nodes import Leaf, Operation
from core.weights.operations import unpacked
from core.weights.packing import NO_ACT_ORDER, Packing
from core.weights.quantization import Quantization

_WORDS = ("I32", "U32")
_SCALES = ("F16", "BF16")  # times a zero point, these are exact in float32; a float32 scale's product might not be
# AutoAWQ packs eight columns into a word in the order 0, 2, 4, 6, 1, 3, 5, 7; these are the shifts of each column's
# bits.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True)
class Imported(Operation):
    """One tensor of MLX's affine form of a matrix that GPTQ or AWQ has quantized.

    Attributes:
        path: of the module in the checkpoint.
        ordered: the file lists each input feature's group; only consecutive groups can be imported.
        approximate: keep float16 scales and biases.
    """

    path: str
    settings: Quantization
    packing: Packing
    ordered: bool
    approximate: bool
    role: str

    @property
    def label(self) -> str:
        return self.packing.method

    @property
    def parts(self) -> tuple[Leaf, ...]:
        names = ["qweight", "qzeros", "scales"] + ["g_idx"] * self.ordered
        return tuple(Leaf(f"{self.path}.{name}") for name in names)

    @property
    def key(self) -> Hashable:
        return Imported, self.path

    @property
    def kept(self) -> mx.Dtype | None:
        return mx.float16 if self.approximate else mx.float32

    def inputs(self, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...] | None, tuple[str, ...]]]:
        rows, columns = shape[-2], unpacked(shape[-1], self.settings, self.role)
        groups, bits = columns // self.settings.group_size, self.settings.bits
        by_columns = self.packing.method == "gptq"  # a word holds input features; else it holds output features
        weight = (columns * bits // 32, rows) if by_columns else (columns, rows * bits // 32)
        needs: list[tuple[tuple[int, ...] | None, tuple[str, ...]]] = [
            (weight, _WORDS),
            ((groups, rows * bits // 32), _WORDS),
            ((groups, rows), _SCALES),
        ]
        return needs + [((columns,), ("I32", "I64"))] * self.ordered

    def storage(self, found: str) -> str:
        if self.role == "weight":
            return PACKED
        return "F16" if self.approximate else "F32"

    def compute(self, *arrays: mx.array) -> dict[str, mx.array]:
        qweight, qzeros, scales, *g_idx = arrays
        if g_idx:
            self._check_groups(g_idx[0])
        exact = mx.contiguous(scales.T).astype(mx.float32)
        biases = -exact * self._zeros(qzeros).T.astype(mx.float32)
        return {"weight": self._weight(qweight), "scales": exact, "biases": biases}

    def loss(self, *arrays: mx.array) -> mx.array | None:
        """The largest difference between a weight and its exact value by the file; None if all are exact."""
        if not self.approximate:
            return None
        _, qzeros, scales, *_ = arrays
        exact = scales.T.astype(mx.float32)
        biases = -exact * self._zeros(qzeros).T.astype(mx.float32)
        # bfloat16 scales may be rounded too; that error is multiplied by the largest integer.
        off = mx.abs(exact.astype(mx.float16).astype(mx.float32) - exact) * (2**self.settings.bits - 1)
        return mx.max(mx.abs(biases.astype(mx.float16).astype(mx.float32) - biases) + off)

    def _weight(self, qweight: mx.array) -> mx.array:
        """Words ``[out, in * bits / 32]``, the first input feature in the lowest bits."""
        if self.packing.method == "gptq":
            # [in * bits / 32, out]: a word holds the same consecutive features in the same order as MLX's.
            return mx.contiguous(qweight.T).view(mx.uint32)
        columns = mx.contiguous(_awq_columns(qweight).T)  # [out, in]
        pairs = columns[:, 0::2] | (columns[:, 1::2] << 4)
        return mx.contiguous(pairs).view(mx.uint32)

    def _zeros(self, qzeros: mx.array) -> mx.array:
        """Zero points ``[groups, out]``.

        Raises:
            QuantizationError: one has overflowed.
        """
        if self.packing.method == "awq":
            return _awq_columns(qzeros)
        bits = self.settings.bits
        shifts = mx.arange(0, 32, bits, dtype=mx.uint32)
        stored = (qzeros.view(mx.uint32)[..., None] >> shifts) & ((1 << bits) - 1)
        zeros = stored.reshape(qzeros.shape[0], -1) + self.packing.offset
        if self.packing.offset and mx.any(zeros >= 1 << bits).item():
            raise QuantizationError(
                f"tensor '{self.path}.qzeros' holds a zero point of {1 << bits}, which {bits} bits cannot have",
                hint="The tool that wrote it stored 0 minus 1, which readers interpret differently; write the "
                "checkpoint as gptq_v2.",
            )
        return zeros

    def _check_groups(self, g_idx: mx.array) -> None:
        wanted = mx.arange(g_idx.size) // self.settings.group_size
        if not mx.array_equal(g_idx.astype(wanted.dtype), wanted).item():
            raise QuantizationError(
                f"tensor '{self.path}.g_idx' puts input features into groups out of order",
                expected=f"consecutive groups of {self.settings.group_size}",
                found="activation order (desc_act)",
                hint=NO_ACT_ORDER,
            )


def _awq_columns(words: mx.array) -> mx.array:
    """Four-bit integers ``[rows, 8 * words]`` as bytes, in the order of the columns."""
    pairs = words.view(mx.uint8)
    nibbles = mx.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*words.shape, 8)
    return nibbles[..., mx.array(_AWQ_PLACES)].reshape(words.shape[0], -1)
