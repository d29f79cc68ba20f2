"""Executes a plan: reads tensors, applies the map's operations, and puts the results into the model, block by block.

Memory: at no moment more than the parameters loaded so far and one block's tensors twice. Knows files only as paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint import Checkpoint
from core.errors import CheckpointError, WeightsError
from core.weights.axes import rows_axis
from core.weights.dtypes import spelling
from core.weights.finite import has_non_finite, is_float
from core.weights.permute import to_halves
from core.weights.plan import Entry, Plan
from core.weights.rules import Joined, Leaf, Node, Permuted, Stacked, leaves
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
) -> None:
    """Loads a model's parameters.

    Args:
        plan: made for this very model and checkpoint, and ``ok``.
        lazy: leave the reading to the first use; nothing is checked then.
        check_finite: refuse NaN and infinity, which costs about 0.2 s for a gigabyte of floats on a CPU.
        progress: told after each block.

    Raises:
        WeightsError: a tensor holds NaN or infinity.
        CheckpointError: a shard cannot be read any more.
    """
    for _ in execute_blocks(plan, model, checkpoint, lazy=lazy, check_finite=check_finite, progress=progress):
        pass


def execute_blocks(
    plan: Plan,
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    lazy: bool = False,
    check_finite: bool = True,
    progress: Progress | None = None,
) -> Iterator[list[Entry]]:
    """``execute``, one block at a time: yields the entries of each when they are in the model.

    Who takes a block's arrays out of the model again before asking for the next holds one block at a time.
    """
    plan.check()
    reader = _Reader(checkpoint)
    done, total = 0, plan.bytes
    for entries in _blocks(plan.entries):
        arrays = []
        for entry in entries:
            axis = rows_axis(entry.parameter.rpartition(".")[2], len(entry.shape))
            array = reader.build(entry.source, axis).astype(entry.dtype)
            replace(model, entry.parameter, array)
            arrays.append(array)
        if not lazy:
            _evaluate(arrays, entries, reader, check_finite, checkpoint)
        arrays.clear()
        done += sum(entry.nbytes for entry in entries)
        if progress is not None and not lazy:
            progress(done, total)
        yield entries
    if not lazy:
        mx.clear_cache()


def _blocks(entries: tuple[Entry, ...]) -> Iterator[list[Entry]]:
    """Entries of one block after those of another; what is in no list of blocks comes parameter by parameter."""

    def block(entry: Entry) -> str:
        path = entry.parameter.split(".")
        numbers = [i for i, segment in enumerate(path) if segment.isdigit()]
        return ".".join(path[: numbers[0] + 1]) if numbers else entry.parameter

    for _, group in groupby(entries, key=block):
        yield list(group)


def _evaluate(
    arrays: list[mx.array], entries: list[Entry], reader: _Reader, check_finite: bool, checkpoint: Checkpoint
) -> None:
    flags = [has_non_finite(array) for array in arrays if is_float(array)] if check_finite else []
    try:
        mx.eval(arrays, flags)
    except RuntimeError as error:
        raise CheckpointError(
            "reading the weights failed", where=checkpoint.where(), found=str(error).split("\n")[0]
        ) from error
    if not any(flag.item() for flag in flags):
        return
    for array, entry in zip(arrays, entries, strict=True):
        if is_float(array) and has_non_finite(array).item():
            raise reader.not_finite(entry)


class _Reader:
    """Lazy arrays of a checkpoint's tensors; each is handed out once, so that its memory is free once it is used."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._open: dict[str, dict[str, mx.array]] = {}

    def build(self, node: Node, axis: int) -> mx.array:
        if isinstance(node, Leaf):
            return self._take(node.name)
        if isinstance(node, Permuted):
            return to_halves(self.build(node.part, axis), node.heads, axis)
        if isinstance(node, Stacked) and all(map(_is_flat, node.parts)):
            # All rows of all experts at once, cut afterwards: one copy instead of two.
            rows = mx.concatenate([self._take(name) for name in leaves(node)], axis=0)
            return rows.reshape(len(node.parts), -1, *rows.shape[1:])
        parts = [self.build(part, axis) for part in node.parts]
        return mx.concatenate(parts, axis=axis) if isinstance(node, Joined) else mx.stack(parts)

    def _take(self, name: str) -> mx.array:
        shard = self._checkpoint.tensors[name].shard
        if shard not in self._open:
            self._open[shard] = _load(self._checkpoint.shard_path(shard))
        return self._open[shard].pop(name)

    def not_finite(self, entry: Entry) -> WeightsError:
        """The error for a parameter with NaN or infinity, naming the first tensor that has one.

        Where none has, the conversion to the parameter's dtype has made it.
        """
        for name in entry.tensors:
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
            f"{summarise(entry.tensors)} holds numbers too large for {spelling(entry.dtype)}",
            where=self._checkpoint.where(),
            hint="Load it in another dtype, for instance core.load(…, dtype=mx.float32).",
        )


def _is_flat(node: Node) -> bool:
    return isinstance(node, Joined) and all(isinstance(part, Leaf) for part in node.parts)


def _load(path: Path) -> dict[str, mx.array]:
    try:
        arrays = mx.load(str(path), format="safetensors")
    except RuntimeError as error:
        raise CheckpointError("MLX cannot read this file", where=path, found=str(error).split("\n")[0]) from error
    assert isinstance(arrays, dict)
    return arrays
