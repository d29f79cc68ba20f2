"""Executes a plan: reads tensors, applies the map's operations, and puts the results into the model, block by block.

Memory: at no moment more than the parameters loaded so far and one block's tensors twice: as the file has them, and as
the model does. (AWQ's, whose integers are put into another order, four times.) Knows files only as paths.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from itertools import groupby
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint import Checkpoint
from core.errors import CheckpointError, QuantizationError, WeightsError
from core.weights.axes import rows_axis
from core.weights.dtypes import spelling
from core.weights.finite import has_non_finite, is_float
from core.weights.nodes import Joined, Leaf, Node, Operation, Permuted, Stacked, leaves, outer_operation
from core.weights.permute import to_halves
from core.weights.plan import Entry, Plan
from core.weights.summary import summarise
from core.weights.tree import replace

Progress = Callable[[int, int], None]
"""Called with the bytes loaded so far and in all."""


def execute(
    plan: Plan,
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    lazy: bool = False,
    check_finite: bool = True,
    progress: Progress | None = None,
) -> float | None:
    """Loads a model's parameters.

    Returns:
        The largest error of a weight, where the plan approximates some; None where it does not, or for a lazy load.

    Args:
        plan: made for this very model and checkpoint, and ``ok``.
        lazy: leave the reading to the first use; nothing is checked then.
        check_finite: refuse NaN and infinity, which costs about 0.2 s for a gigabyte of floats on a CPU.
        progress: told after each block.

    Raises:
        WeightsError: a tensor holds NaN or infinity.
        CheckpointError: a shard cannot be read any more.
    """
    losses: list[float] = []
    for _ in execute_blocks(
        plan, model, checkpoint, lazy=lazy, check_finite=check_finite, progress=progress, losses=losses
    ):
        pass
    return max(losses, default=None)


def execute_blocks(
    plan: Plan,
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    lazy: bool = False,
    check_finite: bool = True,
    progress: Progress | None = None,
    losses: list[float] | None = None,
) -> Iterator[list[Entry]]:
    """``execute``, one block at a time: yields the entries of each when they are in the model.

    The largest errors of weights that the plan approximates are appended to ``losses``.

    Who takes a block's arrays out of the model again before asking for the next holds one block at a time.
    """
    plan.check()
    reader = _Reader(checkpoint, check_finite and not lazy, not lazy)
    done, total = 0, plan.bytes
    for entries in _blocks(plan.entries):
        arrays = []
        for entry in entries:
            axis = rows_axis(entry.parameter.rpartition(".")[2], len(entry.shape))
            array = reader.build(entry.source, axis).astype(entry.dtype)
            replace(model, entry.parameter, array)
            arrays.append(array)
        if not lazy:
            lost = _evaluate(arrays, entries, reader, check_finite, checkpoint)
            if losses is not None:
                losses += lost
        arrays.clear()
        done += sum(entry.nbytes for entry in entries)
        if progress is not None and not lazy:
            progress(done, total)
        yield entries
    if not lazy:
        mx.clear_cache()


def _blocks(entries: tuple[Entry, ...]) -> Iterator[list[Entry]]:
    """Entries of one block after those of another; what is in no list of blocks comes module by module."""

    def block(entry: Entry) -> str:
        path = entry.parameter.split(".")
        numbers = [i for i, segment in enumerate(path) if segment.isdigit()]
        return ".".join(path[: numbers[0] + 1] if numbers else path[:-1])

    for _, group in groupby(entries, key=block):
        yield list(group)


def _evaluate(
    arrays: list[mx.array], entries: list[Entry], reader: _Reader, check_finite: bool, checkpoint: Checkpoint
) -> list[float]:
    """Reads a block, and returns the errors that it makes on purpose.

    Raises:
        WeightsError: NaN or infinity.
        CheckpointError: a shard cannot be read.
    """
    flags = [has_non_finite(array) for array in arrays if is_float(array)] if check_finite else []
    flags += reader.take_flags()
    losses = reader.take_losses()
    try:
        mx.eval(arrays, flags, losses)
    except RuntimeError as error:
        raise CheckpointError(
            "reading the weights failed", where=checkpoint.where(), found=str(error).split("\n")[0]
        ) from error
    if not any(flag.item() for flag in flags):
        return [cast(float, loss.item()) for loss in losses]
    for array, entry in zip(arrays, entries, strict=True):
        if is_float(array) and has_non_finite(array).item():
            raise reader.not_finite(entry)
    # What was quantized hides it.
    raise reader.not_finite(*(entry for entry in entries if _operation(entry) is not None))


class _Reader:
    """Lazy arrays of a checkpoint's tensors; each is handed out once, so that its memory is free once it is used."""

    def __init__(self, checkpoint: Checkpoint, check_sources: bool, measure: bool) -> None:
        self._checkpoint = checkpoint
        self._check_sources = check_sources
        self._measure = measure
        self._flags: list[mx.array] = []
        self._losses: list[mx.array] = []
        self._computed: dict[Hashable, dict[str, mx.array]] = {}
        self._open: dict[str, dict[str, mx.array]] = {}

    def build(self, node: Node, axis: int) -> mx.array:
        if isinstance(node, Leaf):
            return self._take(node.name)
        if isinstance(node, Operation):
            return self._compute(node, axis)
        if isinstance(node, Permuted):
            return to_halves(self.build(node.part, axis), node.heads, axis)
        if isinstance(node, Stacked) and all(map(_is_flat, node.parts)):
            # All rows of all experts at once, cut afterwards: one copy instead of two.
            parts = [self.build(part, axis) for joined in node.parts for part in _parts(joined)]
            rows = mx.concatenate(parts, axis=0)
            return rows.reshape(len(node.parts), -1, *rows.shape[1:])
        parts = [self.build(part, axis) for part in node.parts]
        return mx.concatenate(parts, axis=axis) if isinstance(node, Joined) else mx.stack(parts)

    def _compute(self, operation: Operation, axis: int) -> mx.array:
        """One result of an operation; all are computed when the first is asked for, and kept until each has been."""
        results = self._computed.pop(operation.key, None)
        if results is None:
            parts = [self.build(part, axis) for part in operation.parts]
            if operation.finite and self._check_sources:
                self._flags += [has_non_finite(part) for part in parts]
            try:
                results = operation.compute(*parts)
                loss = operation.loss(*parts) if self._measure else None
            except QuantizationError as error:  # of what the tensors hold, which no header tells
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
        """The largest errors of what has been approximated, unevaluated; each is handed out once."""
        losses, self._losses = self._losses, []
        return losses

    def take_flags(self) -> list[mx.array]:
        """Whether sources of what has been computed are not finite, unevaluated; each flag is handed out once."""
        flags, self._flags = self._flags, []
        return flags

    def _take(self, name: str) -> mx.array:
        shard = self._checkpoint.tensors[name].shard
        if shard not in self._open:
            self._open[shard] = _load(self._checkpoint.shard_path(shard))
        return self._open[shard].pop(name)

    def not_finite(self, *entries: Entry) -> WeightsError:
        """The error for parameters with NaN or infinity, naming the first tensor that has one.

        Where none has, the conversion to the parameter's dtype has made it.
        """
        for name in dict.fromkeys(name for entry in entries for name in entry.tensors):
            info = self._checkpoint.tensors[name]
            values = _load(self._checkpoint.shard_path(info.shard))[name].astype(mx.float32)
            bad = mx.sum(~mx.isfinite(values)).item()
            if bad:
                return WeightsError(
                    f"tensor {name!r} holds NaN or infinity in {bad:,} of {values.size:,} elements",
                    where=self._checkpoint.where(info.shard),
                    hint="The file is damaged or training diverged. core.load(…, check_finite=False) loads it anyway.",
                )
        return WeightsError(
            f"{summarise(entries[0].tensors)} holds numbers too large for {spelling(entries[0].dtype)}",
            where=self._checkpoint.where(),
            hint="Load it in another dtype, for instance core.load(…, dtype=mx.float32).",
        )


def _is_flat(node: Node) -> bool:
    return isinstance(node, Joined) and all(isinstance(part, Leaf | Operation) for part in node.parts)


def _parts(node: Node) -> tuple[Node, ...]:
    return () if isinstance(node, Leaf) else node.parts


def _operation(entry: Entry) -> Operation | None:
    return outer_operation(entry.source)


def _load(path: Path) -> dict[str, mx.array]:
    try:
        arrays = mx.load(str(path), format="safetensors")
    except RuntimeError as error:
        raise CheckpointError("MLX cannot read this file", where=path, found=str(error).split("\n")[0]) from error
    assert isinstance(arrays, dict)
    return arrays
