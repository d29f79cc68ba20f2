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
    return _cut(twin, lambda array, slots: array[:, :, :slots])


def _cut(cache: Cache, cut: Callable[[mx.array, int], mx.array]) -> Cache:
    """A copy with no more slots than are filled."""
    twin = cache.copy()
    twin.resize(cache.lengths)  # state's arrays of the step before are not kept, so there is no step to take back
    for span in twin.spans.values():
        span.capacity = cache.length - span.base[0]
    for block in twin.blocks:
        if isinstance(block, State):
            # Each step replaces its arrays; a row of a larger batch would keep the others.
            block.replace([mx.contiguous(array) for array in block.arrays()])
        else:
            block.replace([cut(array, twin.capacity(block.reach)) for array in block.arrays()])
    return twin


def _gathered(array: mx.array, slots: int) -> mx.array:
    """The first slots in a buffer of their own: a gather makes one even where a slice would be the whole array."""
    return mx.take(array, mx.arange(slots, dtype=mx.int32), axis=2)
