"""Reads the parameters of one block: what can be begun early is begun, then all of it is evaluated and looked at.

Memory: what the block's parameters need, and once more for those that are not simply the bytes of files. Begun early,
and in memory that is the parameters' own for good, is only what does simply lie in files: a tensor, or several that
are joined or stacked, which a CPU reads where they belong.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

import mlx.core as mx

from core.checkpoint import Checkpoint
from core.errors import CheckpointError, first_line
from core.weights.axes import rows_axis
from core.weights.fill import Filler, blank, can_check, can_fill, streams
from core.weights.finite import is_float, is_non_finite, may_be_non_finite
from core.weights.joint import Extent, extent
from core.weights.nodes import leaves, outer_operation
from core.weights.plan import Entry
from core.weights.reader import Reader

_LARGE = 1 << 22  # bytes of a parameter from which on threads are worth it


@dataclass(slots=True, eq=False)
class Block:
    """What has been begun of some entries, by their place among them.

    Attributes:
        blanks: memory that is to be filled, and from where.
        whole: tensors as they are in files.
        nbytes: bytes of the tensors, as they are in files.
    """

    entries: list[Entry]
    nbytes: int = 0
    blanks: dict[int, tuple[mx.array, Extent]] = field(default_factory=dict)
    whole: dict[int, mx.array] = field(default_factory=dict)


class BlockReader:
    """Reads a checkpoint's blocks; ``close`` it.

    Args:
        check_finite: refuse NaN and infinity.
        prefetch: let threads read what is begun.
    """

    def __init__(self, checkpoint: Checkpoint, check_finite: bool, prefetch: bool = False) -> None:
        self._checkpoint = checkpoint
        self._check = check_finite
        self._looks = check_finite and can_check()
        self._reader = Reader(checkpoint, check_sources=check_finite, measure=True, prefetch=prefetch)
        self._filler = Filler(checkpoint.shard_path, checkpoint.check_unchanged) if can_fill() else None
        self._begun: list[Block] = []
        self._count = 0

    def begin(self, entries: list[Entry]) -> Block:
        """Begins to read, and returns at once.

        Raises:
            CheckpointError: a shard cannot be read.
        """
        names = (name for entry in entries for name in leaves(entry.source))
        block = Block(entries, sum(self._checkpoint.tensors[name].nbytes for name in names))
        self._begun.append(block)
        if self._filler is None:
            self._reader.begin(entries)
            return block
        stream = streams()[self._count % 2]
        self._count += 1
        with self._reading():
            for place, entry in enumerate(entries):
                found = extent(entry.source, _axis(entry), self._checkpoint.tensors) if entry.nbytes >= _LARGE else None
                if found is None:
                    continue
                if len(found.runs) > 1:
                    block.blanks[place] = blank(sum(run.stop - run.start for run in found.runs), stream), found
                else:
                    block.whole[place] = self._reader.build(entry.source, _axis(entry))
            mx.async_eval([memory for memory, _ in block.blanks.values()])
            mx.async_eval(list(block.whole.values()))
        if self._looks and (block.blanks or block.whole):
            self._filler.prepare_checks()
        return block

    def finish(self, block: Block) -> tuple[list[mx.array], list[float]]:
        """The parameters, evaluated, and the errors that are made on purpose.

        Raises:
            WeightsError: NaN or infinity.
            CheckpointError: a shard cannot be read.
        """
        with self._reading():
            checks, checked = self._read(block)
            arrays = [self._array(block, place) for place in range(len(block.entries))]
            flags = self._reader.take_flags()
            if self._check:
                others = (place for place in range(len(arrays)) if place not in checked)
                flags += [flag for at in others if (flag := _non_finite(arrays[at], block.entries[at])) is not None]
            losses = self._reader.take_losses()
            mx.eval(arrays, flags, losses)
            finite = all(check.result() for check in checks) and not any(flag.item() for flag in flags)
        if not finite:
            self._refuse(arrays, block.entries)
        self._begun.remove(block)
        return arrays, [cast(float, loss.item()) for loss in losses]

    def check_unchanged(self) -> None:
        """Holds all shards of which something was read against what they were when their headers were.

        Raises:
            CheckpointError: one has changed, so that what was read may be anything.
        """
        self._reader.check_unchanged()
        if self._filler is not None:
            self._filler.check_files()

    def _read(self, block: Block) -> tuple[list[Future[bool]], set[int]]:
        """Waits for what has been begun; returns what is still being looked at, and the places of it."""
        if self._filler is None:
            return [], set()
        entries = block.entries
        dtypes = {place: found.dtype for place, (_, found) in block.blanks.items()}
        dtypes |= {place: array.dtype for place, array in block.whole.items()}
        # Numbers of another dtype than the parameter's may become too large for it.
        checked = {at for at, dtype in dtypes.items() if self._looks and is_float(dtype) and dtype == entries[at].dtype}
        fills: list[Future[bool]] = []
        mx.eval([memory for memory, _ in block.blanks.values()])
        for place, (memory, found) in block.blanks.items():
            fills += self._filler.fill(memory, found.runs, found.dtype if place in checked else None)
        mx.eval(list(block.whole.values()))
        whole = (array for place, array in block.whole.items() if place in checked)
        checks = [check for array in whole for check in self._filler.check(array)]
        for fill in fills:
            fill.result()  # all there, before anything is computed of it
        return fills + checks, checked

    def _array(self, block: Block, place: int) -> mx.array:
        entry = block.entries[place]
        if place in block.blanks:
            memory, found = block.blanks[place]
            array = memory.view(found.dtype).reshape(found.shape)
        elif place in block.whole:
            array = block.whole[place]
        else:
            array = self._reader.build(entry.source, _axis(entry))
        return array.astype(entry.dtype)

    def _refuse(self, arrays: list[mx.array], entries: list[Entry]) -> None:
        for array, entry in zip(arrays, entries, strict=True):
            flag = _non_finite(array, entry)
            if flag is not None and flag.item():
                raise self._reader.not_finite(entry)
        # What was quantized hides it.
        raise self._reader.not_finite(*(entry for entry in entries if outer_operation(entry.source) is not None))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OSError) as error:
            raise CheckpointError(
                "reading the weights failed", where=self._checkpoint.where(), found=first_line(error)
            ) from error

    def close(self) -> None:
        """Ends its threads, and waits for MLX to have read what it has begun: its errors would come up elsewhere."""
        self._reader.close()
        if self._filler is not None:
            self._filler.close()
        for block in self._begun:
            with suppress(RuntimeError):
                mx.eval(list(block.whole.values()))


def _non_finite(array: mx.array, entry: Entry) -> mx.array | None:
    """Whether a parameter holds NaN or infinity, unevaluated; None for integers."""
    mode = None if entry.quantization is None else entry.quantization.mode
    role = _role(entry)
    return is_non_finite(array, mode, role) if may_be_non_finite(array.dtype, mode, role) else None


def _axis(entry: Entry) -> int:
    return rows_axis(_role(entry), len(entry.shape))


def _role(entry: Entry) -> str:
    return entry.parameter.rpartition(".")[2]
