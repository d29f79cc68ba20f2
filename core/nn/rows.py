"""Moves rows between caches: sequences join a cache, leave it, and move to another.

Every block cache has rows on axis 0 and slots, if any, on axis 2.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from core.device import backend
from core.kernels import reference_only
from core.nn.cache import BlockCache, Cache, State


class Cached(Protocol):
    """A model with a cache."""

    def hidden_states(self, tokens: mx.array, cache: Cache | None = None) -> mx.array: ...


@dataclass(frozen=True)
class _Kind:
    """One array of one block: its shape for one row, and whether its slots grow with the sequence."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    grows: bool

    def sized(self, rows: int, capacity: int) -> tuple[int, ...]:
        sides = [rows, *self.shape[1:]]
        if self.grows:
            sides[2] = capacity
        return tuple(sides)


class RowTemplate:
    """The arrays of one row of a model's cache, so that caches can be allocated before anything is written.

    They are found by building a step of one token that is never computed.

    Args:
        model: the model.
        make_cache: makes its caches, for a number of rows, all with the same settings.
    """

    def __init__(self, model: Cached, make_cache: Callable[[int], Cache]) -> None:
        self._make = make_cache
        probe = make_cache(1)
        # Sources that compute at once on a CPU would do so here; references are computed only when their results are
        # needed.
        with reference_only() if backend() == "cpu" else contextlib.nullcontext():
            model.hidden_states(mx.zeros((1, 1), dtype=mx.int32), probe)
        self._capacities = {key: span.capacity for key, span in probe.spans.items()}
        self._kinds = [
            [_Kind(array.shape, array.dtype, _grows(block)) for array in block.arrays()] for block in probe.blocks
        ]
        self.grows = any(_grows(block) for block in probe.blocks)
        """Whether a longer sequence takes more memory, because some block keeps every token."""
        self.keeps_state = any(isinstance(block, State) for block in probe.blocks)
        """Whether some block must process a row's tokens one after the other, so that they cannot be rows of their
        own."""

    def row_bytes(self, capacity: int) -> int:
        """Bytes of one row with room for ``capacity`` tokens."""
        total = 0
        for kind in itertools.chain(*self._kinds):
            count = kind.dtype.size
            for side in kind.sized(1, capacity):
                count *= side
            total += count
        return total

    def make(self, rows: int, capacity: int) -> Cache:
        """A cache of so many empty rows, with buffers for ``capacity`` tokens, zeros."""
        cache = self._make(rows)
        for block, kinds in zip(cache.blocks, self._kinds, strict=True):
            block.replace([mx.zeros(kind.sized(rows, capacity), dtype=kind.dtype) for kind in kinds])
        for key, span in cache.spans.items():
            span.capacity = capacity if key is None else self._capacities[key]
        return cache

    def fits(self, cache: Cache, capacity: int) -> bool:
        """Whether a cache has the buffers that ``make`` would give it."""
        wanted = [capacity if key is None else self._capacities[key] for key in cache.spans]
        return wanted == [span.capacity for span in cache.spans.values()] and all(b.arrays() for b in cache.blocks)


def put(target: Cache, places: Sequence[int], source: Cache, rows: Sequence[int]) -> None:
    """Overwrites rows of one cache with rows of another; ``target`` has room for them."""
    for place, row in zip(places, rows, strict=True):
        target.lengths[place] = source.lengths[row]
        for key, span in target.spans.items():
            span.base[place] = source.spans[key].base[row]
    for own, other in zip(target.blocks, source.blocks, strict=True):
        given = other.arrays()
        if not given:  # nothing was written yet: the rows are empty
            continue
        arrays = own.arrays()
        for to, count, first in _runs(places, rows):
            for index, array in enumerate(arrays):
                part = given[index][first : first + count]
                if isinstance(own, State):
                    array[to : to + count] = part
                else:
                    slots = min(array.shape[2], part.shape[2])
                    array[to : to + count, :, :slots] = part[:, :, :slots]
        own.replace(arrays)


def select(cache: Cache, rows: Sequence[int]) -> None:
    """Keeps these rows, in this order."""
    index = mx.array(list(rows), dtype=mx.int32)
    for block in cache.blocks:
        block.replace([mx.take(array, index, axis=0) for array in block.arrays()])
    _set_rows(cache, [cache.lengths[row] for row in rows], rows)


def extend(cache: Cache, count: int) -> None:
    """Adds empty rows at the end."""
    for block in cache.blocks:
        block.replace(
            [
                mx.concatenate([array, mx.zeros((count, *array.shape[1:]), dtype=array.dtype)])
                for array in block.arrays()
            ]
        )
    _set_rows(cache, cache.lengths + [0] * count, [*range(cache.batch), *[None] * count])


def mirror(cache: Cache, row: int, like: int) -> None:
    """Gives an unused row the position of another one, so that all rows stay aligned."""
    cache.lengths[row] = cache.lengths[like]
    for span in cache.spans.values():
        span.base[row] = span.base[like]


def extract(cache: Cache, row: int, make_cache: Callable[[int], Cache]) -> Cache:
    """A copy of one row as a cache of its own, without shared buffers or free slots."""
    twin = make_cache(1)
    index = mx.array([row], dtype=mx.int32)
    length = cache.lengths[row]
    for key, span in twin.spans.items():
        span.base[0] = cache.spans[key].base[row]
        span.capacity = length if key is None or not length else cache.spans[key].capacity
    for own, other in zip(twin.blocks, cache.blocks, strict=True):
        if isinstance(other, State):
            own.replace([mx.take(array, index, axis=0) for array in other.arrays()])
        elif length:
            slots = length if _grows(other) else None
            own.replace([mx.take(array[:, :, :slots], index, axis=0) for array in other.arrays()])
    twin.lengths = [length]
    return twin


def _set_rows(cache: Cache, lengths: list[int], rows: Iterable[int | None]) -> None:
    rows = list(rows)
    cache.resize(lengths)
    for span in cache.spans.values():
        span.base = [0 if row is None else span.base[row] for row in rows]


def _grows(block: BlockCache) -> bool:
    return not isinstance(block, State) and block.reach is None


def _runs(places: Sequence[int], rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """``(place, count, row)`` for each stretch in which both increase by one."""
    runs: list[tuple[int, int, int]] = []
    for place, row in zip(places, rows, strict=True):
        if runs and runs[-1][0] + runs[-1][1] == place and runs[-1][2] + runs[-1][1] == row:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, runs[-1][2])
        else:
            runs.append((place, 1, row))
    return runs
