"""Reads from headers and config how a checkpoint stores each matrix: quantized or not, by which tool, in which
dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from core.checkpoint import TensorInfo
from core.errors import QuantizationError
from core.weights.dtypes import FLOATS
from core.weights.imported import Imported
from core.weights.nodes import Leaf, Node, tensor_name
from core.weights.operations import Dequantized
from core.weights.quantization import Quantization, QuantizationConfig, roles


@dataclass(frozen=True, slots=True)
class Kind:
    """The properties that parts must share to be in one matrix; ``made``: the load quantizes it."""

    settings: Quantization | None
    dtypes: tuple[str | None, ...]
    made: bool = False

    def __str__(self) -> str:
        return f"{self.settings or 'not quantized'}, {self.dtypes[0]}"


class Stored:
    """The matrices of a checkpoint.

    Args:
        tensors: headers.
        quantization: the config's block, or None.
        where: how an error names a shard.
        approximate: as in ``Treatment``.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        quantization: QuantizationConfig | None,
        where: Callable[[str], str],
        approximate: bool = False,
    ) -> None:
        self._tensors = tensors
        self._quantization = quantization
        self._where = where
        self._approximate = approximate
        self.packing = None if quantization is None else quantization.packing

    def has(self, leaf: Leaf) -> bool:
        """Whether the checkpoint has a matrix of that path."""
        return self._matrix(leaf) in self._tensors

    def where(self, leaf: Leaf) -> str:
        """How an error names the file of an existing matrix."""
        return self._where(self._tensors[self._matrix(leaf)].shard)

    def kind(self, leaf: Leaf, *, dequantized: bool = False) -> Kind:
        """The kind of an existing matrix; with ``dequantized``, that of its floats.

        Raises:
            QuantizationError: tensors and config contradict each other, or it is stored in a way that is not supported.
        """
        name = leaf.name
        if leaf.whole:  # without suffixes there is no place for scales
            return Kind(None, (self._tensors[name].dtype, None, None))
        dtypes = tuple(
            info.dtype if (info := self._tensors.get(tensor)) else None
            for tensor in (self._matrix(leaf), f"{name}.scales", f"{name}.biases")
        )
        quantized = f"{name}.scales" in self._tensors
        if f"{name}.global_scale" in self._tensors:
            raise QuantizationError(
                f"tensor '{name}.global_scale' scales the whole matrix, which is not supported",
                where=self._where(self._tensors[f"{name}.global_scale"].shard),
                hint="MLX's product with quantized weights takes no such scale; convert the model without it.",
            )
        config = self._quantization
        if quantized and config is None:
            raise QuantizationError(
                f"tensor '{name}.scales' says that the weights are quantized, but the config has no quantization block",
                where=self._where(self._tensors[f"{name}.scales"].shard),
                expected='"quantization": {"bits": …, "group_size": …} in config.json',
                hint="Copy the block from the config this checkpoint was published with.",
            )
        if config is None:
            return Kind(None, dtypes)
        settings = config.of(name)
        if quantized and settings is None:
            raise QuantizationError(
                f"the config turns quantization off for {name!r}, but its tensors are quantized",
                where=self._where(self._tensors[f"{name}.scales"].shard),
            )
        if not quantized and config.overrides.get(name) is not None:
            raise QuantizationError(
                f"the config says that {name!r} is quantized ({settings}), but '{name}.scales' is missing",
                where=self.where(leaf),
            )
        if quantized and dequantized:
            # Matrices that were quantized differently can share one again, if their floats have one dtype.
            return Kind(None, (_float_dtype(dtypes[1]), None, None))
        return Kind(settings if quantized else None, dtypes)

    def floats(self, leaf: Leaf) -> Node:
        """A matrix in full precision."""
        settings = None if self._quantization is None or leaf.whole else self._quantization.of(leaf.name)
        scales = self._tensors.get(f"{leaf.name}.scales")
        if settings is None or scales is None:
            return Leaf(tensor_name(leaf, "weight"))
        sources = tuple(self.quantized(leaf, settings, role) for role in roles(settings))
        return Dequantized(sources, settings, _float_dtype(scales.dtype))

    def quantized(self, leaf: Leaf, settings: Quantization, role: str) -> Node:
        """One tensor of a matrix that is quantized in the file."""
        if self.packing is None:
            return Leaf(tensor_name(leaf, role))
        ordered = f"{leaf.name}.g_idx" in self._tensors
        return Imported(leaf.name, settings, self.packing, ordered, self._approximate, role)

    def _matrix(self, leaf: Leaf) -> str:
        """The tensor that holds a module's matrix."""
        name = tensor_name(leaf, "weight")
        return name if self.packing is None or name in self._tensors else f"{leaf.name}.qweight"


def _float_dtype(scales: str | None) -> str:
    """The dtype of a dequantized matrix: that of its scales. For scales that are bytes, MLX gives bfloat16."""
    return scales if scales in FLOATS else "BF16"
