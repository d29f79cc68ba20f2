"""``Reader``: computes the arrays that a plan's nodes describe from a checkpoint's tensors, unevaluated."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import mlx.core as mx

from core.checkpoint import Checkpoint
from core.errors import CheckpointError, QuantizationError, WeightsError, first_line
from core.weights.dtypes import spelling
from core.weights.finite import count_non_finite, has_non_finite
from core.weights.nodes import Joined, Leaf, Node, Operation, Permuted, Stacked, leaves
from core.weights.operations import Dequantized
from core.weights.permute import to_halves
from core.weights.plan import Entry
from core.weights.summary import summarise


class Begun(Protocol):
    """Tensors that threads are reading."""

    def take(self, name: str) -> mx.array | None:
        """A tensor, evaluated; each is returned once. None for one that no thread reads."""


class Reader:
    """Arrays from a checkpoint's tensors. Each is returned once, so that its memory is freed after use.

    Args:
        checkpoint: a local one.
        check_sources: check the sources of operations that would hide NaN.
        measure: compute the errors of approximated weights.
        begun: tensors that threads read; all others are lazy.
    """

    def __init__(self, checkpoint: Checkpoint, check_sources: bool, measure: bool, begun: Begun | None = None) -> None:
        self._checkpoint = checkpoint
        self._check_sources = check_sources
        self._measure = measure
        self._flags: list[mx.array] = []
        self._losses: list[mx.array] = []
        self._computed: dict[Hashable, dict[str, mx.array]] = {}
        self._open: dict[str, dict[str, mx.array]] = {}
        self._begun = begun

    def build(self, node: Node, axis: int) -> mx.array:
        if isinstance(node, Leaf):
            return self._take(node.name)
        if isinstance(node, Operation):
            return self._compute(node, axis)
        if isinstance(node, Permuted):
            return to_halves(self.build(node.part, axis), node.heads, axis)
        if isinstance(node, Stacked) and all(map(_is_flat, node.parts)):
            # Join all rows of all experts, and split afterwards: one copy instead of two.
            parts = [self.build(part, axis) for joined in node.parts for part in _parts(joined)]
            rows = mx.concatenate(parts, axis=0)
            return rows.reshape(len(node.parts), -1, *rows.shape[1:])
        parts = [self.build(part, axis) for part in node.parts]
        return mx.concatenate(parts, axis=axis) if isinstance(node, Joined) else mx.stack(parts)

    def _compute(self, operation: Operation, axis: int) -> mx.array:
        """One result of an operation. All results are computed at the first request, and kept until each has been
        taken."""
        results = self._computed.pop(operation.key, None)
        if results is None:
            parts = [self.build(part, axis) for part in operation.parts]
            if operation.finite and self._check_sources:
                self._flags += [has_non_finite(part) for part in parts]
            try:
                results = operation.compute(*parts)
                loss = operation.loss(*parts) if self._measure else None
            except QuantizationError as error:  # caused by the tensors' data, which no header shows
                shard = self._checkpoint.tensors[leaves(operation)[0]].shard
                error.where = self._checkpoint.where(shard)
                error.args = (error._render(),)
                raise
            self._losses += [] if loss is None else [loss]
        result = results.pop(operation.role)
        if results:
            self._computed[operation.key] = results
        return result

    def take_losses(self) -> list[mx.array]:
        """The largest errors of approximated weights, unevaluated; each is returned once."""
        losses, self._losses = self._losses, []
        return losses

    def take_flags(self) -> list[mx.array]:
        """Whether the sources of computed tensors hold NaN or infinity, unevaluated; each flag is returned once."""
        flags, self._flags = self._flags, []
        return flags

    def _take(self, name: str) -> mx.array:
        if self._begun is not None and (array := self._begun.take(name)) is not None:
            return array
        shard = self._checkpoint.tensors[name].shard
        if shard not in self._open:
            self._open[shard] = open_shard(self._checkpoint, shard)
        return self._open[shard].pop(name)

    def check_unchanged(self) -> None:
        """Checks that the shards read so far have not changed since their headers were read.

        Raises:
            CheckpointError: one has changed.
        """
        for shard in self._open:
            self._checkpoint.check_unchanged(shard)

    def not_finite(self, *entries: Entry) -> WeightsError:
        """The error for parameters with NaN or infinity. It names the first tensor that has one.

        If no tensor has one, the conversion to the parameter's dtype has made it.
        """
        modes: dict[str, str | None] = {}
        for entry in entries:
            modes |= _modes(entry.source, None if entry.quantization is None else entry.quantization.mode)
        for name, mode in modes.items():
            info = self._checkpoint.tensors[name]
            bad, size = count_non_finite(open_shard(self._checkpoint, info.shard)[name], mode, name.rpartition(".")[2])
            if bad:
                return WeightsError(
                    f"tensor {name!r} holds NaN or infinity in {bad:,} of {size:,} elements",
                    where=self._checkpoint.where(info.shard),
                    hint="The file is damaged or training diverged. core.load(…, check_finite=False) loads it anyway.",
                )
        return WeightsError(
            f"{summarise(entries[0].tensors)} holds numbers too large for {spelling(entries[0].dtype)}",
            where=self._checkpoint.where(),
            hint="Load it in another dtype, for instance core.load(…, dtype=mx.float32).",
        )


def _modes(node: Node, mode: str | None) -> dict[str, str | None]:
    """Tensor → the mode in which the file has quantized its matrix; None if it is not quantized."""
    if isinstance(node, Leaf):
        return {node.name: mode}
    if isinstance(node, Operation):
        mode = node.settings.mode if isinstance(node, Dequantized) else None
    return {name: found for part in node.parts for name, found in _modes(part, mode).items()}


def _is_flat(node: Node) -> bool:
    return isinstance(node, Joined) and all(isinstance(part, Leaf | Operation) for part in node.parts)


def _parts(node: Node) -> tuple[Node, ...]:
    return () if isinstance(node, Leaf) else node.parts


def open_shard(checkpoint: Checkpoint, shard: str) -> dict[str, mx.array]:
    """All tensors of a shard, lazy.

    Raises:
        CheckpointError: it cannot be read, or has changed since its header was read.
    """
    # MLX opens the file by name and reads its header again, so check before and after that the file is unchanged.
    checkpoint.check_unchanged(shard)
    try:
        path = checkpoint.shard_path(shard)
        arrays = mx.load(str(path), format="safetensors")
    except RuntimeError as error:
        raise CheckpointError("MLX cannot read this file", where=path, found=first_line(error)) from error
    finally:
        checkpoint.check_unchanged(shard)
    assert isinstance(arrays, dict)
    return arrays
