"""Reads tensors into a GPU's memory with several threads.

MLX reads a tensor in the thread that evaluates it, into new host memory, and copies it from there. One thread moves 3
GB a second in this way; several threads move more.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import mlx.core as mx

from core.device import backend

_WORTH = 1 << 30  # bytes of a model from which threads are worth it; one thread reads them in a third of a second
_MOST = 1 << 30
_SHARE = 8
_THREADS = 8
_JOB = 1 << 25  # bytes that a thread reads at least before it takes the next job


def bytes_ahead(nbytes: int) -> int:
    """How many bytes to read ahead for a model of ``nbytes``: an eighth, at most 1 GiB; 0 where that saves nothing."""
    return min(_MOST, nbytes // _SHARE) if backend() == "cuda" and nbytes >= _WORTH else 0


class Prefetch:
    """Tensors that threads read before they are needed.

    Args:
        load: returns a shard's tensors by name, unevaluated; called by each thread that reads from the shard.
    """

    def __init__(self, load: Callable[[str], dict[str, mx.array]]) -> None:
        self._load = load
        self._opened: dict[tuple[int, str], dict[str, mx.array]] = {}
        self._jobs: dict[str, Future[dict[str, mx.array]]] = {}
        self.shards: set[str] = set()

    def begin(self, tensors: Iterable[tuple[str, str, int]]) -> None:
        """Starts to read tensors, each given by name, shard and number of bytes."""
        names: dict[str, list[str]] = {}
        sizes: dict[str, int] = {}
        for name, shard, nbytes in tensors:
            names.setdefault(shard, []).append(name)
            sizes[shard] = sizes.get(shard, 0) + nbytes
            if sizes[shard] >= _JOB:
                self._submit(shard, names.pop(shard))
                sizes[shard] = 0
        for shard, left in names.items():
            self._submit(shard, left)

    def take(self, name: str) -> mx.array | None:
        """A tensor, evaluated; each is returned once. None for one that was not begun.

        Raises:
            CheckpointError, RuntimeError: reading failed in the thread.
        """
        job = self._jobs.pop(name, None)
        return None if job is None else job.result().pop(name)

    def close(self) -> None:
        """Waits for the reads that have begun, and drops tensors that were not taken."""
        for job in self._jobs.values():
            job.cancel()
        for job in list(self._jobs.values()):
            if not job.cancelled():
                job.exception()
        self._jobs.clear()
        self._opened.clear()

    def _submit(self, shard: str, names: list[str]) -> None:
        self.shards.add(shard)
        job = _pool().submit(self._read, shard, names)
        for name in names:
            self._jobs[name] = job

    def _read(self, shard: str, names: list[str]) -> dict[str, mx.array]:
        # MLX evaluates an array in the thread that made it, so each thread opens a shard for itself.
        place = threading.get_ident(), shard
        if place not in self._opened:
            self._opened[place] = self._load(shard)
        arrays = {name: self._opened[place].pop(name) for name in names}
        mx.eval(list(arrays.values()))
        return arrays


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """One pool for the process: each of its threads has an MLX stream, and MLX never frees a stream."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="corelm-read")
