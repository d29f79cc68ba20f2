"""Measures the memory bandwidth of the device, which limits decoding: a step reads all weights for each token.

On a GPU, MLX copies memory. On a CPU, memory is only read, by all usable cores and without MLX: MLX copies with one
thread there, and writing takes bandwidth that a decode step does not need.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time

import mlx.core as mx

from core.benchmark.cores import usable_cores
from core.benchmark.result import Spread
from core.device import backend, memory_limits

_REPEATS = 7
_GPU_BYTES, _GPU_CHAIN = 1 << 30, 8
_CPU_BYTES = 1 << 30  # larger than most caches: some servers share 300 MB among their cores
_SHARE = 8  # at most one part in so many of the memory is used
_FILLED, _ABSENT = 1, 2  # bytes


def memory_bandwidth(largest: int | None = None) -> tuple[Spread, str]:
    """The memory's bytes a second, and how they were measured.

    On a GPU, MLX copies integers in a chain of additions of one, so that the launch does not count. Each byte counts
    when it is read and when it is written. On a CPU, existing memory is read by one thread, and by one thread for each
    usable core; the faster of the two counts.

    Args:
        largest: bytes to move at most, for tests.
    """
    available = memory_limits()[1]
    if backend() == "cpu":
        size = _bounded(_CPU_BYTES, available, largest)
        # Cloud machines slow single cores down, and one core may be able to use all of the memory's channels.
        found = {threads: _host_reads(size, threads) for threads in {1, usable_cores()}}
        threads = max(found, key=lambda count: found[count].median)
        return found[threads], f"reads of {size >> 20:,} MiB by {threads} thread{'s' if threads > 1 else ''}"
    size = _bounded(_GPU_BYTES, available, largest)
    rates = _device_copies(size)
    mx.clear_cache()
    return rates, f"copies of {size >> 20:,} MiB"


def _bounded(size: int, available: int | None, largest: int | None) -> int:
    return min(bound for bound in (size, available and available // _SHARE, largest) if bound is not None)


def _device_copies(size: int) -> Spread:
    source = mx.arange(size // 4, dtype=mx.int32)

    def seconds() -> float:
        array = source
        started = time.perf_counter()
        for _ in range(_GPU_CHAIN):
            array = array + 1
        mx.eval(array)
        mx.synchronize()
        return time.perf_counter() - started

    mx.eval(source)
    seconds()
    return Spread.of(2 * source.nbytes * _GPU_CHAIN / seconds() for _ in range(_REPEATS))


def _host_reads(size: int, threads: int) -> Spread:
    """Rates of searching for a byte that does not occur, which reads every byte; the C library's search is
    vectorised."""
    part = size // threads
    buffer = ctypes.create_string_buffer(part * threads)
    ctypes.memset(buffer, _FILLED, part * threads)  # pages of zeros may all be the same page
    search = ctypes.CDLL(None if os.name == "posix" else "msvcrt").memchr
    search.argtypes, search.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    places = [(ctypes.addressof(buffer) + number * part, _ABSENT, part) for number in range(threads)]

    def seconds() -> float:
        # ctypes lets other threads run during a foreign call.
        workers = [threading.Thread(target=search, args=place) for place in places]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.perf_counter() - started

    seconds()
    return Spread.of(part * threads / seconds() for _ in range(_REPEATS))
