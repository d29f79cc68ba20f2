"""``Prefixes``: lets the requests of a batch continue from a prefix cache, and stores their caches there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx

from core.batching.groups import Groups
from core.batching.row import Row
from core.nn import Cache

if TYPE_CHECKING:
    from core.prompt_cache import PrefixCache


class Prefixes:
    """The prefix cache of a batch.

    Args:
        store: None keeps nothing.
        make_cache: a new cache of the batch's model and settings.

    Raises:
        CacheError: the store belongs to another model, or to other settings.
    """

    def __init__(self, store: PrefixCache | None, make_cache: Callable[[int], Cache]) -> None:
        self._store = store
        self._make_cache = make_cache
        self._kept: list[tuple[list[int], Cache]] = []
        if store is not None:
            store.fetch([0], make_cache(1))

    def look_up(self, row: Row) -> None:
        """Gives a row that is about to start the cached beginning of its prompt, if there is one."""
        if self._store is not None and not row.sought:
            row.sought = True
            found, tokens = self._store.fetch(row.request.prompt_ids, self._make_cache(1))
            row.found = found if tokens else None

    def take(self, row: Row, groups: Groups[Row], nbytes: int) -> None:
        """Copies the cache of a row that leaves, of size ``nbytes``; ``store`` stores it."""
        if self._store is not None and nbytes <= self._store.max_bytes:
            cache = groups.extract(row)
            mx.async_eval(cache.arrays())
            # The cache holds every id that the host has read: a step with the last one as its input had already begun.
            self._kept.append((row.request.prompt_ids + row.answer.token_ids, cache))

    def store(self) -> None:
        """Stores the copies. It waits until they are computed, so call it when the device has other work."""
        kept, self._kept = self._kept, []
        for ids, cache in kept:
            assert self._store is not None
            self._store.store(ids, cache)
