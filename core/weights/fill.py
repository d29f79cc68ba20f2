"""Reads pieces of files into existing arrays, in several threads, and checks for NaN while the bytes are in the cache.

It is for CPUs, where new memory costs more than the copy into it: joining parts after reading would need it twice.

No thread that Python waits for while it holds its lock needs that lock, so nothing here can deadlock. The memory is
MLX's own and is evaluated before a byte is written, and no thread of MLX runs Python. (A file-like object given to
``mx.load`` would need no evaluation. But threads that MLX shares among all loads read and free it, and they need the
lock. A path given to ``mx.load`` takes 7 % less time. But where such a read fails, as when the file has become shorter,
MLX 0.32.4 can lose the signal that the evaluation waits for, and then that evaluation, or a later one, never ends.)
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx

from core.device import backend
from core.weights.finite import bytes_are_finite
from core.weights.joint import Run

_PIECE = 1 << 22  # bytes that a thread reads and then checks: they fit into the last-level cache
_THREADS = 4
_own = threading.local()


def can_fill() -> bool:
    """Whether filling is useful on this device. A GPU joins quickly, and its memory must not be written from
    outside."""
    return backend() == "cpu" and hasattr(os, "preadv")


def can_check() -> bool:
    """Whether the threads can also check for NaN."""
    return importlib.util.find_spec("numpy") is not None


def streams() -> tuple[mx.Stream, mx.Stream]:
    """Two streams of this thread for ``blank``: writing new memory takes processor time, and a stream is one thread.

    MLX frees no stream, so each thread makes its second one only once.
    """
    if not hasattr(_own, "second"):
        _own.second = mx.new_stream(mx.Device(mx.DeviceType.cpu))
    return mx.default_stream(mx.Device(mx.DeviceType.cpu)), _own.second


def blank(nbytes: int, stream: mx.Stream | None = None) -> mx.array:
    """New memory, to be evaluated and then filled: a flat array of integers."""
    # Wide integers take less time to write. ``contiguous`` makes it real memory, not one repeated number.
    dtype = mx.uint32 if nbytes % 4 == 0 else mx.uint8
    return mx.contiguous(mx.zeros((nbytes // dtype.size,), dtype, stream=stream), stream=stream)


class Filler:
    """Threads that fill arrays with bytes of files.

    Args:
        path: returns the local file of a shard.
        check: called with a shard and the descriptor of the opened file (None if it could not be opened). Raises if the
            file is not the one whose header was read.
    """

    def __init__(
        self, path: Callable[[str], Path], check: Callable[[str, int | None], None] = lambda shard, file: None
    ) -> None:
        self._path = path
        self._check = check
        self._files: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(_THREADS)

    def prepare_checks(self) -> None:
        """Imports the NaN check early, before there is data to check."""
        self._pool.submit(importlib.import_module, "numpy")

    def fill(self, array: mx.array, runs: Iterable[Run], dtype: mx.Dtype | None) -> list[Future[bool]]:
        """Starts to fill an array.

        Args:
            array: ``blank``, evaluated, and not used elsewhere until the results are there.
            runs: where its bytes are in files.
            dtype: the dtype of the numbers, if they must be finite; None without a check.

        Returns:
            For each piece, whether all of its numbers are finite. A result may raise ``OSError``.

        Raises:
            OSError: a shard cannot be opened.
            CheckpointError: from ``check``.
        """
        if not array.size:
            return []
        memory = memoryview(array).cast("B")  # type: ignore[arg-type]
        jobs, filled = [], 0
        for run in runs:
            file = self._open(run.shard)
            for start in range(run.start, run.stop, _PIECE):
                size = min(_PIECE, run.stop - start)
                jobs.append(self._pool.submit(_fill, file, start, memory[filled : filled + size], dtype))
                filled += size
        return jobs

    def read(self, run: Run) -> mx.array:
        """Reads bytes at once, into a new array of ``uint8``: the fast way for a few.

        Raises:
            OSError: the shard cannot be opened or read.
            CheckpointError: whatever ``check`` raises.
        """
        found = bytearray(run.stop - run.start)
        _fill(self._open(run.shard), run.start, memoryview(found), None)
        return mx.array(memoryview(found))  # type: ignore[arg-type]  # it has the buffer protocol

    def _open(self, shard: str) -> int:
        if shard not in self._files:
            try:
                self._files[shard] = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self._check(shard, None)
                raise
            self._check(shard, self._files[shard])
        return self._files[shard]

    def check_files(self) -> None:
        """Calls ``check`` again for every open file."""
        for shard, file in self._files.items():
            self._check(shard, file)

    def close(self) -> None:
        """Ends the threads, and drops reads that have not begun."""
        self._pool.shutdown(cancel_futures=True)
        while self._files:
            os.close(self._files.popitem()[1])


def _fill(file: int, start: int, memory: Any, dtype: mx.Dtype | None) -> bool:
    done = 0
    while done < len(memory):
        count = os.preadv(file, [memory[done:]], start + done)
        if not count:
            raise OSError(f"a shard has become shorter: there is no byte {start + done:,}")
        done += count
    return dtype is None or bytes_are_finite(memory, dtype)
