"""Caches of processed prompts, found again by their longest common prefix with a new one.

Reuse is exact: a model goes on from a stored cache only at a length at which it holds what a fresh one would. A full
cache can be cut at any length; one with a sliding window or ``max_kv_tokens`` only as far back as it still has every
token that the next query sees (always, before it first dropped any); recurrent state only at the length at which it
was stored. At least the prompt's last token is always left to process, since it takes a step to know what follows it.
Where rotary frequencies depend on the sequence's length, so do the keys: what is kept and found again then ends where
they begin to (``core.nn.rotation_limit``), and a longer prompt is processed whole.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import CacheError, UsageError
from core.nn import Cache
from core.prompt_cache.snapshot import beginning, snapshot

_BYTES = 4  # of an id


@dataclass(frozen=True, slots=True)
class _Entry:
    """A snapshot and its ids, as the bytes of uint32: they compare in C."""

    ids: bytes
    cache: Cache
    nbytes: int


class PrefixCache:
    """Snapshots of caches within a number of bytes; the least recently used go first. Safe to use from several threads.

    It belongs to one model with one set of cache settings: those of the first cache it stores.

    Args:
        max_bytes: of the arrays held. Each snapshot has the slots it fills and no more, and one whose tokens another
            holds too, and can be cut to, is dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        if not isinstance(max_bytes, int) or max_bytes <= 0:
            raise UsageError("max_bytes is out of range", expected="an integer, 1 or more", found=repr(max_bytes))
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # by ids, least recently used first
        self._owner: object = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Snapshots held."""
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        return sum(entry.nbytes for entry in self._entries.values())

    def clear(self) -> None:
        """Forgets everything, the model too."""
        with self._lock:
            self._entries.clear()
            self._owner = None

    def store(self, ids: Sequence[int], cache: Cache) -> bool:
        """Keeps a copy of a cache, which may go on being used; it waits for the steps so far.

        Args:
            ids: the tokens that the cache holds, in order; a generation's last id, which it does not hold, may follow.
            cache: of one sequence.

        Returns:
            Whether what the cache holds can be fetched now; False where it alone is larger than ``max_bytes``. Of a
            cache whose last keys were rotated as in a long sequence, only what is before them is meant.

        Raises:
            CacheError: another model or other settings, fewer ids than tokens, or not one usable sequence.
        """
        length = len(_held_ids(ids, cache))
        if cache.rotation_limit is not None and cache.unstretched < length:
            if not cache.can_rewind(length - cache.unstretched):
                return False
            cache, length = cache.copy(), cache.unstretched
            cache.trim(length)
        key = _packed(ids[:length])
        with self._lock:
            self._check_owner(cache)
            if length == 0 or self._touch(key):
                return length > 0
        kept = snapshot(cache)
        entry = _Entry(key, kept, kept.nbytes)
        if entry.nbytes > self.max_bytes:
            return False
        with self._lock:
            self._check_owner(cache)
            if self._touch(key):
                return True
            self._owner = _owner(cache)
            for other in list(self._entries.values()):
                if key.startswith(other.ids) and kept.can_rewind((len(key) - len(other.ids)) // _BYTES):
                    del self._entries[other.ids]
            excess = self.nbytes + entry.nbytes - self.max_bytes
            while excess > 0:
                _, oldest = self._entries.popitem(last=False)
                excess -= oldest.nbytes
            self._entries[key] = entry
        return True

    def fetch(self, ids: Sequence[int], empty: Cache) -> tuple[Cache, int]:
        """A cache that holds as much of the beginning of ``ids`` as a stored one gives; continue with the rest.

        Later use of the returned cache changes nothing that is stored, provided that its first step is an ordinary one
        (``snapshot.beginning`` says why), as that of a prompt's tokens is.

        Args:
            ids: a whole prompt.
            empty: a new cache of the model that is to continue, with its settings.

        Returns:
            The cache, and how many of the ids it holds: at most all but one. Where nothing fits, ``empty`` and 0.

        Raises:
            CacheError: what is stored belongs to another model or other settings.
        """
        key = _packed(ids)
        with self._lock:
            self._check_owner(empty)
            if empty.rotation_limit is not None and len(ids) > empty.rotation_limit:
                return empty, 0
            best, entry = 0, None
            for candidate in self._entries.values():
                length = min(_common(candidate.ids, key), len(ids) - 1)
                if length > best and candidate.cache.can_rewind(candidate.cache.length - length):
                    best, entry = length, candidate
            if entry is None:
                return empty, 0
            self._entries.move_to_end(entry.ids)
            return beginning(entry.cache, best), best

    def _touch(self, key: bytes) -> bool:
        """Whether a stored cache can already be cut to just these ids; it then counts as used."""
        for entry in self._entries.values():
            if entry.ids.startswith(key) and entry.cache.can_rewind((len(entry.ids) - len(key)) // _BYTES):
                self._entries.move_to_end(entry.ids)
                return True
        return False

    def _check_owner(self, cache: Cache) -> None:
        if self._owner is not None and self._owner != _owner(cache):
            raise CacheError(
                "this prefix cache belongs to another model, or to other cache settings",
                hint="Use one PrefixCache for each model and each set of max_kv_tokens, kept_tokens, kv_bits and "
                "kv_group_size.",
            )


def _owner(cache: Cache) -> object:
    return cache.model, cache.settings, cache.specs


def _held_ids(ids: Sequence[int], cache: Cache) -> Sequence[int]:
    """Those of ``ids`` that the cache holds.

    Raises:
        CacheError: there are too few.
    """
    length = max(cache.lengths)
    if len(ids) < length:
        raise CacheError("the cache holds more tokens than there are ids", expected=length, found=len(ids))
    return ids[:length]


def _packed(ids: Sequence[int]) -> bytes:
    try:
        return array("I", ids).tobytes()
    except (TypeError, OverflowError):
        raise UsageError("a prompt's ids must be integers from 0 to 2**32 - 1") from None


def _common(one: bytes, other: bytes) -> int:
    """Ids at the beginning that are the same, by bisection: comparing bytes costs next to nothing."""
    low, high = 0, min(len(one), len(other)) // _BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if one[low * _BYTES : middle * _BYTES] == other[low * _BYTES : middle * _BYTES]:
            low = middle
        else:
            high = middle - 1
    return low
