"""Copies a cache of one sequence without its free slots, or cuts it to a length, sharing its buffers.

Block caches have rows on axis 0 and slots on axis 2.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from core.errors import CacheError
from core.nn import Cache, State


def snapshot(cache: Cache) -> Cache:
    """A copy that no later use of ``cache`` changes, not even a kernel that writes into its buffers; evaluated.

    Raises:
        CacheError: more than one sequence, or a step on it failed.
    """
    if cache.batch != 1:
        raise CacheError("a prompt's cache holds one sequence", expected="1 row", found=f"{cache.batch} rows")
    if cache.failed:
        raise CacheError("an earlier step on this cache failed half-way", hint="Make a new cache.")
    twin = _cut(cache, _gathered)
    mx.eval(twin.arrays())
    return twin


def beginning(cache: Cache, length: int) -> Cache:
    """A cache with the first ``length`` tokens of a snapshot. It shares the snapshot's buffers, and has no free slots.

    The next ordinary step therefore copies them to new buffers. Until then, nothing may write into the buffers in
    place. A fast step does, but it runs only after a prompt's ordinary steps.

    Raises:
        CacheError: as ``Cache.rewind``.
    """
    twin = cache.copy()
    twin.trim(length)
    return _cut(twin, _sliced)


def _cut(cache: Cache, cut: Callable[[mx.array, int, int], mx.array]) -> Cache:
    """A copy without free slots; ``cut(array, size, axis)`` returns an array's beginning."""
    twin = cache.copy()
    twin.resize(cache.lengths)  # drops state's arrays of the step before, so that step cannot be undone
    for span in twin.spans.values():
        span.capacity = cache.length - span.base[0]
    for block in twin.blocks:
        size, axis = (1, 0) if isinstance(block, State) else (twin.capacity(block.reach), 2)
        block.replace([cut(array, size, axis) for array in block.arrays()])
    return twin


def _gathered(array: mx.array, size: int, axis: int) -> mx.array:
    """The beginning in a buffer of its own: a gather makes one even where a slice would be the whole array."""
    return mx.take(array, mx.arange(size, dtype=mx.int32), axis=axis)


def _sliced(array: mx.array, size: int, axis: int) -> mx.array:
    """The beginning in the same buffer."""
    return array[:, :, :size] if axis == 2 else array[:size]
