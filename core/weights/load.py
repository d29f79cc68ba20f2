"""Executes a plan: reads tensors, applies the map's operations, and puts the results into the model, block by block.

Memory: at most the parameters loaded so far, and one block's tensors twice: as in the file, and as in the model. (AWQ's
take four times, as their integers are reordered.) On CUDA, threads read further blocks ahead
(``core.weights.prefetch``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import groupby

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint import Checkpoint
from core.errors import CoreError
from core.weights.axes import rows_axis
from core.weights.block import Block, BlockReader
from core.weights.plan import Entry, Plan
from core.weights.prefetch import bytes_ahead
from core.weights.reader import Reader
from core.weights.tree import replace

Progress = Callable[[int, int], None]
"""Called with the number of bytes loaded so far, and the total."""


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

    Args:
        plan: made for this model and checkpoint, and ``ok``.
        model: the skeleton.
        checkpoint: a local one.
        lazy: read each parameter at its first use. Nothing is checked then, not even whether the files have changed.
        check_finite: refuse NaN and infinity, which costs about 0.1 s for a gigabyte of floats on a CPU.
        progress: called after each block.

    Returns:
        The largest error of a weight, if the plan approximates some; else None. Always None for a lazy load.

    Raises:
        WeightsError: a tensor holds NaN or infinity.
        CheckpointError: a shard cannot be read any more, or has changed since its header was read.
    """
    if lazy:
        plan.check()
        _put_lazily(plan, model, checkpoint)
        return None
    losses: list[float] = []
    blocks = execute_blocks(
        plan, model, checkpoint, check_finite=check_finite, progress=progress, losses=losses, ahead=1
    )
    for _ in blocks:
        pass
    return max(losses, default=None)


def execute_blocks(
    plan: Plan,
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    check_finite: bool = True,
    progress: Progress | None = None,
    losses: list[float] | None = None,
    ahead: int = 0,
) -> Iterator[list[Entry]]:
    """``execute``, one block at a time: yields the entries of each when they are in the model.

    The largest errors of weights that the plan approximates are appended to ``losses``.

    If the caller removes a block's arrays from the model before asking for the next, memory holds one block at a time,
    and those that are read ``ahead``.
    """
    plan.check()
    done, total = 0, plan.bytes
    left = _blocks(plan.entries)
    most = bytes_ahead(total) if ahead else 0
    with closing(BlockReader(checkpoint, check_finite, prefetch=most > 0)) as reader:
        begun: deque[Block] = deque()
        while True:
            try:
                while len(begun) <= ahead or sum(block.nbytes for block in begun) < most:
                    if not (entries := next(left, [])):
                        break
                    begun.append(reader.begin(entries))
                if not begun:
                    break
                block = begun.popleft()
                entries = block.entries
                arrays, lost = reader.finish(block)
            except CoreError:
                reader.check_unchanged()  # if a file has changed, report that, as it is the cause
                raise
            del block
            for entry, array in zip(entries, arrays, strict=True):
                replace(model, entry.parameter, array)
            del arrays, array
            if losses is not None:
                losses += lost
            done += sum(entry.nbytes for entry in entries)
            if progress is not None:
                progress(done, total)
            yield entries
        reader.check_unchanged()
    mx.clear_cache()


def _put_lazily(plan: Plan, model: nn.Module, checkpoint: Checkpoint) -> None:
    reader = Reader(checkpoint, check_sources=False, measure=False)
    for entry in plan.entries:
        axis = rows_axis(entry.parameter.rpartition(".")[2], len(entry.shape))
        replace(model, entry.parameter, reader.build(entry.source, axis).astype(entry.dtype))
    reader.check_unchanged()


def _blocks(entries: tuple[Entry, ...]) -> Iterator[list[Entry]]:
    """Groups entries by block; entries outside of all lists of blocks are grouped by module."""

    def block(entry: Entry) -> str:
        path = entry.parameter.split(".")
        numbers = [i for i, segment in enumerate(path) if segment.isdigit()]
        return ".".join(path[: numbers[0] + 1] if numbers else path[:-1])

    for _, group in groupby(entries, key=block):
        yield list(group)
