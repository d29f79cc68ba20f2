"""How fast the device copies memory: the yardstick of decoding, which reads all weights for each token.

Knows bytes and seconds; knows nothing of models.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time

import mlx.core as mx

from core.benchmark.result import Spread
from core.device import backend, memory_limits

_REPEATS = 7
_GPU_BYTES, _GPU_CHAIN = 1 << 30, 8
_CPU_BYTES = 1 << 28  # larger than any cache
_SHARE = 8  # of the memory, at most one part in so many is copied


def copy_bandwidth(largest: int | None = None) -> tuple[Spread, str]:
    """Bytes a second of a large copy, each byte counted when it is read and when it is written; and what was copied.

    On a GPU, integers through MLX, a chain of additions of one, so that the launch does not count. On a CPU, memory
    that exists already, by all cores at once: MLX takes new memory for each result there, and would measure how fast
    the system hands out pages.

    Args:
        largest: bytes to copy at most, for tests.
    """
    available = memory_limits()[1]
    if backend() == "cpu":
        size = _bounded(_CPU_BYTES, available, largest)
        # Clouds slow single cores down, and one core may fill the memory's channels: the faster of the two counts.
        found = {threads: _host_copies(size, threads) for threads in {1, os.cpu_count() or 1}}
        threads = max(found, key=lambda count: found[count].median)
        return found[threads], f"a copy of {size >> 20:,} MiB by {threads} thread{'s' if threads > 1 else ''}"
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


def _host_copies(size: int, threads: int) -> Spread:
    part = size // threads
    source, target = (ctypes.create_string_buffer(part * threads) for _ in range(2))
    for number, buffer in enumerate((source, target)):
        ctypes.memset(buffer, number + 1, part * threads)  # pages of zeros may all be one
    places = [(ctypes.addressof(target) + n * part, ctypes.addressof(source) + n * part, part) for n in range(threads)]

    def seconds() -> float:
        # ctypes lets other threads run during a foreign call.
        workers = [threading.Thread(target=ctypes.memmove, args=place) for place in places]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.perf_counter() - started

    seconds()
    return Spread.of(2 * part * threads / seconds() for _ in range(_REPEATS))
