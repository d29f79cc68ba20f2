"""``PrefixCache``: caches of processed prompts, found by the longest common prefix with a new prompt.

Reuse is exact: a stored cache is cut only to lengths at which it equals a new one. A full cache can be cut at any
length. One with a sliding window or ``max_kv_tokens`` can be cut only as far back as it still has every token that the
next query sees (so at any length, until it first drops a token). Recurrent state can be used only at the length at
which it was stored. At least the prompt's last token is always left to process, since the next token comes from a step.
Where rotary frequencies depend on the sequence's length, the keys do too: stored and reused prefixes then end at that
length (``core.nn.rotation_limit``), and a longer prompt is processed whole.
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

_BYTES = 4  # bytes of an id


@dataclass(frozen=True, slots=True)
class _Entry:
    """A snapshot and its ids. They are stored as the bytes of uint32, which compare fast."""

    ids: bytes
    cache: Cache
    nbytes: int


class PrefixCache:
    """Snapshots of caches within a limit of bytes; the least recently used are dropped first. Any thread may use it.

    It belongs to one model with one set of cache settings: those of the first cache it stores.

    Args:
        max_bytes: of the arrays held. Snapshots have no free slots. If another one holds the same tokens, and can
            be cut to them, a snapshot is dropped.
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
        """Removes all snapshots; the next cache stored may be of another model."""
        with self._lock:
            self._entries.clear()
            self._owner = None

    def store(self, ids: Sequence[int], cache: Cache) -> bool:
        """Stores a copy of a cache, which may be used further. It waits for the steps so far.

        Args:
            ids: the tokens that the cache holds, in order; a generation's last id, which it does not hold, may follow.
            cache: of one sequence.

        Returns:
            Whether the tokens of the cache can be fetched now; False if it alone exceeds ``max_bytes``. If its last
            keys were rotated as in a long sequence, this concerns only the tokens before them.

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
        """A cache with the longest beginning of ``ids`` that a stored one gives; continue with the rest.

        Using the returned cache does not change the stored one, if its first step is an ordinary one
        (``snapshot.beginning`` says why), such as processing a prompt's tokens.

        Args:
            ids: a whole prompt.
            empty: a new cache of the model that is to continue, with its settings.

        Returns:
            The cache, and how many of the ids it holds: at most all but one. If nothing fits, ``empty`` and 0.

        Raises:
            CacheError: the stored caches belong to another model or other settings.
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
        """Whether a stored cache can already be cut to exactly these ids; it then counts as used."""
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
    """Number of equal ids at the beginning, by bisection: comparing bytes is very fast."""
    low, high = 0, min(len(one), len(other)) // _BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if one[low * _BYTES : middle * _BYTES] == other[low * _BYTES : middle * _BYTES]:
            low = middle
        else:
            high = middle - 1
    return low
