"""Reads the parameters of one block: reading starts early where possible, then all are evaluated and checked.

Memory: the block's parameters; and once more those that are computed, and not plain bytes of files. On a CPU, only
plain bytes are read early: a tensor, or several that are joined or stacked. They are read directly into the memory that
the parameters keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import mlx.core as mx

from core.checkpoint import Checkpoint
from core.errors import CheckpointError, first_line
from core.weights.axes import rows_axis
from core.weights.fill import Filler, blank, can_check, can_fill, streams
from core.weights.filled import FilledTensors
from core.weights.finite import is_float, is_non_finite, may_be_non_finite
from core.weights.joint import Extent, extent
from core.weights.nodes import leaves, outer_operation
from core.weights.plan import Entry
from core.weights.prefetch import Prefetch
from core.weights.reader import Reader, open_shard

_LARGE = 1 << 22  # bytes from which a parameter is worth reading in threads


@dataclass(slots=True, eq=False)
class Block:
    """The started reads of some entries, by the entries' places.

    Attributes:
        blanks: memory to be filled, with the place in files of its bytes.
        nbytes: bytes of the tensors in the files.
    """

    entries: list[Entry]
    nbytes: int = 0
    blanks: dict[int, tuple[mx.array, Extent]] = field(default_factory=dict)


class BlockReader:
    """Reads a checkpoint's blocks. Call ``close`` afterwards.

    Args:
        checkpoint: a local one.
        check_finite: refuse NaN and infinity.
        prefetch: read in MLX's own way, in several threads, as a GPU needs it.
    """

    def __init__(self, checkpoint: Checkpoint, check_finite: bool, prefetch: bool = False) -> None:
        self._checkpoint = checkpoint
        self._check = check_finite
        self._looks = check_finite and can_check()
        self._prefetch = Prefetch(lambda shard: open_shard(checkpoint, shard)) if prefetch else None
        fills = can_fill() and not prefetch
        self._filler = Filler(checkpoint.shard_path, checkpoint.check_unchanged) if fills else None
        self._filled = FilledTensors(self._filler, checkpoint.tensors) if self._filler is not None else None
        begun = self._filled or self._prefetch
        self._reader = Reader(checkpoint, check_sources=check_finite, measure=True, begun=begun)
        self._count = 0

    def begin(self, entries: list[Entry]) -> Block:
        """Starts to read, and returns at once.

        Raises:
            CheckpointError: a shard cannot be read.
        """
        tensors = self._checkpoint.tensors
        infos = {name: tensors[name] for entry in entries for name in leaves(entry.source)}
        block = Block(entries, sum(info.nbytes for info in infos.values()))
        if self._prefetch is not None:
            self._prefetch.begin((name, info.shard, info.nbytes) for name, info in infos.items())
        if self._filler is None:
            return block
        stream = streams()[self._count % 2]
        self._count += 1
        with self._reading():
            for place, entry in enumerate(entries):
                found = extent(entry.source, _axis(entry), tensors) if entry.nbytes >= _LARGE else None
                if found is not None:
                    block.blanks[place] = blank(found.nbytes, stream), found
            mx.async_eval([memory for memory, _ in block.blanks.values()])
        if self._looks and block.blanks:
            self._filler.prepare_checks()
        return block

    def finish(self, block: Block) -> tuple[list[mx.array], list[float]]:
        """The parameters, evaluated, and the errors of weights that the caller has accepted.

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
            # A read that fails in MLX may never end (``core.weights.fill``), so check beforehand what can be checked.
            self._reader.check_unchanged()
            mx.eval(arrays, flags, losses)
            finite = all(check.result() for check in checks) and not any(flag.item() for flag in flags)
        if not finite:
            self._refuse(arrays, block.entries)
        return arrays, [cast(float, loss.item()) for loss in losses]

    def check_unchanged(self) -> None:
        """Checks that the shards read so far have not changed since their headers were read.

        Raises:
            CheckpointError: one has changed, so the data may be wrong.
        """
        self._reader.check_unchanged()
        if self._prefetch is not None:
            for shard in self._prefetch.shards:
                self._checkpoint.check_unchanged(shard)
        if self._filler is not None:
            self._filler.check_files()

    def _read(self, block: Block) -> tuple[list[Future[bool]], set[int]]:
        """Waits for the started reads. Returns whether their pieces are finite, and the places of the checked
        entries."""
        if self._filler is None or self._filled is None:
            return [], set()
        checked: set[int] = set()
        fills: list[Future[bool]] = []
        mx.eval([memory for memory, _ in block.blanks.values()])
        for place, (memory, found) in block.blanks.items():
            # Converting to another dtype may overflow, so such parameters are checked after it.
            if self._looks and is_float(found.dtype) and found.dtype == block.entries[place].dtype:
                checked.add(place)
            fills += self._filler.fill(memory, found.runs, found.dtype if place in checked else None)
        others = (entry for place, entry in enumerate(block.entries) if place not in block.blanks)
        self._filled.begin({name: None for entry in others for name in leaves(entry.source)})
        for fill in fills:
            fill.result()  # all bytes are read before anything is computed from them
        return fills, checked

    def _array(self, block: Block, place: int) -> mx.array:
        entry = block.entries[place]
        if place in block.blanks:
            memory, found = block.blanks[place]
            return found.view(memory).astype(entry.dtype)
        return self._reader.build(entry.source, _axis(entry)).astype(entry.dtype)

    def _refuse(self, arrays: list[mx.array], entries: list[Entry]) -> None:
        for array, entry in zip(arrays, entries, strict=True):
            flag = _non_finite(array, entry)
            if flag is not None and flag.item():
                raise self._reader.not_finite(entry)
        # Quantization hides NaN.
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
        """Ends its threads."""
        if self._prefetch is not None:
            self._prefetch.close()
        if self._filler is not None:
            self._filler.close()


def _non_finite(array: mx.array, entry: Entry) -> mx.array | None:
    """Whether a parameter holds NaN or infinity, unevaluated; None for integers."""
    mode = None if entry.quantization is None else entry.quantization.mode
    role = _role(entry)
    return is_non_finite(array, mode, role) if may_be_non_finite(array.dtype, mode, role) else None


def _axis(entry: Entry) -> int:
    return rows_axis(_role(entry), len(entry.shape))


def _role(entry: Entry) -> str:
    return entry.parameter.rpartition(".")[2]
