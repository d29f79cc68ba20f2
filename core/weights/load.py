"""Executes a plan: reads tensors, applies the map's operations, and puts the results into the model, block by block.

Memory: at no moment more than the parameters loaded so far and one block's tensors twice: as the file has them, and as
the model does. (AWQ's, whose integers are put into another order, four times.) On CUDA threads read ahead of it
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
        lazy: leave the reading to the first use; nothing is checked then, not even that the files are the same still.
        check_finite: refuse NaN and infinity, which costs about 0.1 s for a gigabyte of floats on a CPU.
        progress: told after each block.

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

    Who takes a block's arrays out of the model again before asking for the next holds one block at a time, and so many
    more as are begun ``ahead``.
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
                reader.check_unchanged()  # which would be the cause
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
    """Entries of one block after those of another; what is in no list of blocks comes module by module."""

    def block(entry: Entry) -> str:
        path = entry.parameter.split(".")
        numbers = [i for i, segment in enumerate(path) if segment.isdigit()]
        return ".".join(path[: numbers[0] + 1] if numbers else path[:-1])

    for _, group in groupby(entries, key=block):
        yield list(group)
