"""Reads tensors that lie apart in files as the one array that they become: no copy, and no memory for the parts.

MLX reads safetensors from anything that behaves like a file. Here that is a file of one tensor that exists nowhere: its
header is made up, and its data is read from where the parts are, several pieces at a time. Knows byte ranges; knows
nothing of models.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from core.checkpoint import TensorInfo
from core.device import backend
from core.weights.nodes import Joined, Leaf, Node, Stacked

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_DTYPES = frozenset({"BF16", "F16", "F32", "U32", "U8"})
_PIECE = 1 << 23  # bytes that one thread reads at a time
_THREADS = 4
_NAME = "joint"


def joins_in_files() -> bool:
    """Whether it is worth it here: a GPU joins in no time, a CPU takes longer for new memory than for the copy."""
    return backend() == "cpu" and hasattr(os, "preadv")


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes ``start`` to ``stop`` of a shard."""

    shard: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Extent:
    """An array as the runs of bytes that make it up, in order."""

    dtype: str
    shape: tuple[int, ...]
    runs: tuple[Run, ...]


def extent(node: Node, axis: int, tensors: Mapping[str, TensorInfo]) -> Extent | None:
    """Where the bytes of an array are; None where they are not simply in files, or not of one dtype.

    Args:
        axis: of what is joined, counted from the last.
    """
    if isinstance(node, Leaf):
        info = tensors[node.name]
        if info.dtype not in _DTYPES:
            return None
        return Extent(info.dtype, info.shape, (Run(info.shard, info.start, info.stop),))
    if not isinstance(node, Joined | Stacked):
        return None
    parts = [extent(part, axis, tensors) for part in node.parts]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or len({part.dtype for part in found}) > 1:
        return None
    first = found[0]
    if isinstance(node, Stacked):
        runs = tuple(run for part in found for run in part.runs)
        return Extent(first.dtype, (len(found), *first.shape), runs)
    place = len(first.shape) + axis
    before, after = first.shape[:place], first.shape[place + 1 :]
    shape = (*before, sum(part.shape[place] for part in found), *after)
    cut = [_cut(part, math.prod(before)) for part in found]
    if any(rows is None for rows in cut):
        return None
    slices = zip(*(rows for rows in cut if rows is not None), strict=True)
    return Extent(first.dtype, shape, tuple(run for together in slices for runs in together for run in runs))


def _cut(part: Extent, count: int) -> list[tuple[Run, ...]] | None:
    """The runs of each of ``count`` equal slices."""
    if count == 1:
        return [part.runs]
    if len(part.runs) > 1:
        return None
    run = part.runs[0]
    size = (run.stop - run.start) // count
    return [(Run(run.shard, run.start + n * size, run.start + (n + 1) * size),) for n in range(count)]


class JointReader:
    """Makes arrays of extents.

    Args:
        path: the local file of a shard.
    """

    def __init__(self, path: Callable[[str], Path]) -> None:
        self._path = path
        self._files: dict[str, io.FileIO] = {}
        self._pool: ThreadPoolExecutor | None = None

    def array(self, found: Extent) -> mx.array:
        """The array, unevaluated; evaluate it with ``mx.eval``, which lets other threads of Python run.

        Raises:
            OSError: a shard cannot be opened.
        """
        from concurrent.futures import ThreadPoolExecutor  # slow to import

        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
        for run in found.runs:
            if run.shard not in self._files:
                self._files[run.shard] = self._path(run.shard).open("rb", buffering=0)
        places = [(self._files[run.shard], run.start, run.stop) for run in found.runs]
        loaded: Any = mx.load(_Joint(found, places, self._pool), format="safetensors")  # type: ignore[arg-type]
        array: mx.array = loaded[_NAME]
        return array

    def close(self) -> None:
        """Closes the files: what has not been evaluated cannot be read any more."""
        if self._pool is not None:
            self._pool.shutdown()
        for file in self._files.values():
            file.close()


class _Joint:
    """The file that exists nowhere, as far as MLX asks for it."""

    closed = False

    def __init__(self, found: Extent, places: list[tuple[io.FileIO, int, int]], pool: ThreadPoolExecutor) -> None:
        size = sum(stop - start for _, start, stop in places)
        header = json.dumps({_NAME: {"dtype": found.dtype, "shape": found.shape, "data_offsets": [0, size]}}).encode()
        self._head = len(header).to_bytes(8, "little") + header
        self._places = places
        self._pool = pool
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        end = len(self._head) + sum(stop - start for _, start, stop in self._places)
        self._at = offset + (0, self._at, end)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer; returns how many bytes could be read. Raises nothing: MLX may call from any thread."""
        view = memoryview(buffer).cast("B")
        wanted = len(view)
        head = self._head[self._at : self._at + wanted]
        view[: len(head)] = head
        read = len(head)
        pieces = self._pieces(self._at + read - len(self._head), view[read:])
        with contextlib.suppress(RuntimeError):  # closed: nothing more is read
            read += sum(self._pool.map(lambda piece: _fill(*piece), pieces))
        self._at += read
        return read

    def _pieces(self, position: int, view: memoryview) -> Iterator[tuple[io.FileIO, int, memoryview]]:
        """Which part of the view comes from where in which file; ``position`` is in the data."""
        filled = 0
        for file, start, stop in self._places:
            skipped = min(position, stop - start)
            position -= skipped
            start += skipped
            stop = min(stop, start + len(view) - filled)
            for at in range(start, stop, _PIECE):
                size = min(_PIECE, stop - at)
                yield file, at, view[filled : filled + size]
                filled += size


def _fill(file: io.FileIO, at: int, view: memoryview) -> int:
    done = 0
    try:
        while done < len(view) and (count := os.preadv(file.fileno(), [view[done:]], at + done)):
            done += count
    except (OSError, ValueError):  # ValueError: closed
        return done
    return done
