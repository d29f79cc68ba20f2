"""A cache of one sequence cut to the slots that it fills: as a copy that shares nothing, or as a part of another.

Knows the layout that block caches keep (rows on axis 0, slots on axis 2); knows no files and no ids.
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
    """A cache with the first ``length`` tokens of a snapshot, which it shares and never writes: it has no free slots.

    The next step therefore copies what it keeps to buffers of its own. So nothing may write into this one's buffers in
    place before an ordinary step has run on it; a fast step begins after a prompt's ordinary ones.

    Raises:
        CacheError: as ``Cache.rewind``.
    """
    twin = cache.copy()
    twin.trim(length)
    return _cut(twin, _sliced)


def _cut(cache: Cache, cut: Callable[[mx.array, int, int], mx.array]) -> Cache:
    """A copy with no more slots than are filled; ``cut(array, size, axis)`` gives an array's beginning."""
    twin = cache.copy()
    twin.resize(cache.lengths)  # state's arrays of the step before are not kept, so there is no step to take back
    for span in twin.spans.values():
        span.capacity = cache.length - span.base[0]
    for block in twin.blocks:
        size, axis = (1, 0) if isinstance(block, State) else (twin.capacity(block.reach), 2)
        block.replace([cut(array, size, axis) for array in block.arrays()])
    return twin


def _gathered(array: mx.array, size: int, axis: int) -> mx.array:
    """In a buffer of its own: a gather makes one even where a slice would be the whole array."""
    return mx.take(array, mx.arange(size, dtype=mx.int32), axis=axis)


def _sliced(array: mx.array, size: int, axis: int) -> mx.array:
    """In the same buffer."""
    return array[:, :, :size] if axis == 2 else array[:size]
