"""The caches of the decoding rows, in groups of equal capacity. Rows join, leave, and move to a larger group as they
grow.

The buffers of a group have one capacity, a power of two of tokens, so that short rows do not pay for a long one. Models
whose caches do not grow with the sequence have one group. A new row takes a place that an earlier one has left; when
many places are free, the group shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import mlx.core as mx

from core.nn import Cache
from core.nn.rows import RowTemplate, extend, extract, mirror, put, select

SMALLEST = 512
"""Tokens of the smallest class. Smaller classes would make more groups, and each group needs its own attention call."""
_AHEAD = 64  # tokens that a row should be able to grow before it has to move to the next class

R = TypeVar("R", bound=Hashable)


def capacity_class(tokens: int) -> int:
    """The capacity of the class that holds ``tokens``."""
    return max(SMALLEST, 1 << (tokens - 1).bit_length())


def joining_class(length: int, total: int) -> int:
    """The capacity of the class that a row of ``length`` tokens joins, if it may grow to ``total``."""
    return capacity_class(max(length + 1, min(length + _AHEAD, total)))


class _Group(Generic[R]):
    """Rows of one capacity; ``changed``: an operation that is not computed yet reads or writes the buffers."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.places: list[R | None] = [None] * cache.batch
        self.changed = True

    @property
    def live(self) -> int:
        return sum(row is not None for row in self.places)

    def take_places(self, count: int) -> list[int]:
        """Takes ``count`` free places. If there are too few, makes a quarter more than needed, so that few joins copy
        the group."""
        free = [place for place, row in enumerate(self.places) if row is None]
        if len(free) < count:
            more = max(count - len(free), self.live // 4)
            extend(self.cache, more)
            free += range(len(self.places), len(self.places) + more)
            self.places += [None] * more
        return free[:count]


class Groups(Generic[R]):
    """The caches of all decoding rows.

    Args:
        template: the kind of cache that each row gets.
        make_cache: makes a cache like the template.
    """

    def __init__(self, template: RowTemplate, make_cache: Callable[[int], Cache]) -> None:
        self._template = template
        self._make_cache = make_cache
        self._groups: dict[int, _Group[R]] = {}
        self._where: dict[R, tuple[int, int]] = {}

    @property
    def places(self) -> list[R | None]:
        """The rows of a step in the order of ``caches``; None for free places."""
        return [row for group in self._groups.values() for row in group.places]

    @property
    def caches(self) -> list[Cache]:
        """The caches of ``places``, one for each group."""
        return [group.cache for group in self._groups.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of all groups."""
        return sum(group.cache.nbytes for group in self._groups.values())

    def __contains__(self, row: R) -> bool:
        """Whether the row has a place."""
        return row in self._where

    def join(self, rows: Sequence[R], totals: Sequence[int], source: Cache) -> None:
        """Takes the rows of a cache in.

        Args:
            rows: in the order of ``source``.
            totals: tokens that each row may grow to.
            source: their cache.
        """
        classes: dict[int, list[int]] = {}
        for index, (length, total) in enumerate(zip(source.lengths, totals, strict=True)):
            classes.setdefault(joining_class(length, total) if self._template.grows else 0, []).append(index)
        for size, indices in classes.items():
            self._put(size, [rows[index] for index in indices], source, indices)

    def leave(self, row: R) -> None:
        """Frees a row's place."""
        size, place = self._where.pop(row)
        self._groups[size].places[place] = None

    def extract(self, row: R) -> Cache:
        """A copy of a row's cache, which shares no buffer with the group."""
        size, place = self._where[row]
        return extract(self._groups[size].cache, place, self._make_cache)

    def settle(self) -> None:
        """Prepares a step: every row gets room for one more token. Many free places are removed; the others get the
        position of a used one, so that all rows stay aligned."""
        if self._template.grows:
            self._move_up()
        for size, group in list(self._groups.items()):
            live = group.live
            if live == 0:
                del self._groups[size]
            elif len(group.places) - live > len(group.places) // 4:
                self._shrink(size, group)
        for group in self._groups.values():
            if None in group.places:
                like = next(place for place, row in enumerate(group.places) if row is not None)
                for place, row in enumerate(group.places):
                    if row is None:
                        mirror(group.cache, place, like)
        changed = [group for group in self._groups.values() if group.changed]
        if changed:
            # Compute this now, not with the step: a buffer with a pending copy cannot be written in place.
            mx.async_eval([group.cache.arrays() for group in changed])
        for group in changed:
            group.changed = False

    def _class(self, tokens: int) -> int:
        return capacity_class(tokens) if self._template.grows else 0

    def _put(self, size: int, rows: list[R], source: Cache, indices: list[int]) -> None:
        group = self._groups.get(size)
        if group is None:
            # A cache that was made with this capacity, as prompts' are, becomes the group: nothing is copied.
            whole = indices == list(range(source.batch)) and self._template.fits(source, size)
            group = _Group(source if whole else self._template.make(len(rows), size))
            self._groups[size] = group
            self._groups = dict(sorted(self._groups.items()))
        places = group.take_places(len(rows))
        if group.cache is not source:
            put(group.cache, places, source, indices)
        for row, place in zip(rows, places, strict=True):
            group.places[place] = row
            self._where[row] = size, place
        group.changed = True

    def _move_up(self) -> None:
        for size, group in list(self._groups.items()):
            full = [p for p, row in enumerate(group.places) if row is not None and group.cache.lengths[p] >= size]
            if full:
                rows = [row for row in (group.places[place] for place in full) if row is not None]
                self._put(self._class(size + 1), rows, group.cache, full)
                group.changed = True
                for place in full:
                    group.places[place] = None

    def _shrink(self, size: int, group: _Group[R]) -> None:
        kept = [place for place, row in enumerate(group.places) if row is not None]
        select(group.cache, kept)
        group.places = [group.places[place] for place in kept]
        for place, row in enumerate(group.places):
            assert row is not None
            self._where[row] = size, place
        group.changed = True
