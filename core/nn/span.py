"""``Span``: which slots of a cache's buffers hold which positions; host arithmetic shared by all blocks with one
window.

A buffer is ``[batch, heads, slots, head_dim]``; slot ``s`` of row ``b`` holds position ``base[b] + s``. A full cache
never moves its base. A window cache slides: when its slots run out, the tokens that a later query can still see (and a
few spare ones, so that recent tokens can be removed) move to the front, and the base increases. So keys stay in order
and contiguous, and one query needs no mask. Under a limit that keeps the first tokens, these stay in the first slots,
which then hold the positions 0, 1, ..., and the others slide behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from core.errors import CacheError

SPARE = 16  # tokens kept beyond the window: a sequence can be rewound by so many from its greatest length
_GROWTH = 256  # slots: a full cache grows by at least this many, so that growing is rare
_SLIDE = (16, 240)  # slots: a window cache slides its tokens once in so many steps, at least and at most


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``tokens`` tokens: the first ``kept`` of the sequence, and the last ones (StreamingLLM's sinks).

    A query at position *i* sees the keys *j* with ``j < kept`` or ``j > i - (tokens - kept)``.
    """

    kept: int
    tokens: int


Reach = int | Limit | None
"""Which tokens a cache keeps: the last ones (a window, the query's own included), those of a limit, or (None) all."""


@dataclass(frozen=True, slots=True)
class Move:
    """Slots that survive into a new buffer: a range common to all rows, or one index for each row and slot.

    Attributes:
        start, stop: the surviving slots, when ``index`` is None.
        front: slots that survive before those.
        index: int32 ``[batch, 1, kept, 1]``.
        size: slots of the new buffer.
    """

    start: int
    stop: int
    size: int
    front: int = 0
    index: mx.array | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """How one step changes the buffers of every block that shares a span.

    Attributes:
        before: move the kept tokens to a new buffer first.
        first: the first slot to write, when the rows are aligned.
        slots: int32 ``[batch, 1, seq, 1]``, the slots to write, when they are not.
        after: keep only these slots when the block has attended (a chunk longer than the window).
        last: end of the slots in use after writing.
        base: position of each row's slot 0 while the step attends.
    """

    before: Move | None
    first: int
    slots: mx.array | None
    after: Move | None
    last: int
    base: tuple[int, ...]

    @property
    def aligned(self) -> bool:
        """Whether all rows write to the same slot."""
        return self.slots is None


class Span:
    """The slots of one kind of cache (all blocks with the same ``reach``) for a batch of rows.

    Args:
        reach: which tokens are kept.
        batch: rows.

    Attributes:
        base: for each row, the position of slot 0, and of the slots behind ``front`` minus their number.
        capacity: slots of the buffers.
        front: first slots that never move.
    """

    def __init__(self, reach: Reach, batch: int) -> None:
        self.reach = reach
        self.base = [0] * batch
        self.capacity = 0
        self.front, window = (reach.kept, reach.tokens) if isinstance(reach, Limit) else (0, reach)
        self._window = window  # under a limit: number of tokens behind the front, a few more than a query sees
        self._kept = None if window is None else self.front + window - 1 + SPARE
        self._target = 0 if window is None else self.front + window + SPARE + min(max(window, _SLIDE[0]), _SLIDE[1])

    def copy(self) -> Span:
        """An independent span in the same state."""
        twin = Span(self.reach, len(self.base))
        twin.base, twin.capacity = list(self.base), self.capacity
        return twin

    def can_rewind(self, row: int, length: int) -> bool:
        """Whether a query at position ``length`` would find all the keys that it sees."""
        if self._window is None or self.base[row] == 0:
            return True
        return length - self._window + 1 >= self.base[row] + self.front

    def check_rewind(self, row: int, length: int) -> None:
        """Refuses a length whose window is no longer complete.

        Raises:
            CacheError: tokens that a query at ``length`` sees have been dropped.
        """
        if not self.can_rewind(row, length):
            what = "max_kv_tokens" if isinstance(self.reach, Limit) else "the sliding window"
            raise CacheError(
                f"cannot rewind to {length} tokens: {what} has already dropped tokens that it needs",
                expected=f"at most {SPARE} tokens behind the longest it has been",
                hint="Start again with a new cache, or keep a cache.copy() from before.",
            )

    def extend(self, lengths: list[int], counts: list[int], seq: int) -> Write:
        """Plans to write ``seq`` tokens a row after ``lengths[b]`` others; row ``b`` keeps ``counts[b]`` of them."""
        filled = [length - base for length, base in zip(lengths, self.base, strict=True)]
        aligned = len(set(filled)) == 1 and len(set(self.base)) == 1
        before = after = None
        if max(filled) + seq > self.capacity:
            before = self._make_room(lengths, filled, seq, aligned)
            filled = [length - base for length, base in zip(lengths, self.base, strict=True)]
            aligned = len(set(filled)) == 1 and len(set(self.base)) == 1
        base = tuple(self.base)
        last = max(filled) + seq
        if self._kept is not None and self.capacity > self._target:
            after = self._drop_old([n + c for n, c in zip(lengths, counts, strict=True)])
        slots = None
        if not aligned:
            slots = (mx.array(filled, dtype=mx.int32)[:, None] + mx.arange(seq, dtype=mx.int32))[:, None, :, None]
        return Write(before, filled[0], slots, after, last, base)

    def _make_room(self, lengths: list[int], filled: list[int], seq: int, aligned: bool) -> Move:
        if self._kept is None:
            need = max(filled) + seq
            # A quarter more each time: all copies together cost a constant factor, however long the sequence gets.
            wanted = max(need, self.capacity + self.capacity // 4) if self.capacity else need
            self.capacity = -(-wanted // _GROWTH) * _GROWTH
            return Move(0, max(filled), self.capacity)
        move = self._slide(lengths, seq)
        self.capacity = move.size
        return move

    def _slide(self, lengths: list[int], room: int) -> Move:
        """Moves each row's last tokens to the front, with ``room`` free slots behind the longest row."""
        assert self._kept is not None
        base = [max(old, length - self._kept) for old, length in zip(self.base, lengths, strict=True)]
        shift = [new - old for new, old in zip(base, self.base, strict=True)]
        kept = max(length - new for length, new in zip(lengths, base, strict=True))
        size = max(self._target, kept + room)
        slots, front = self.capacity, self.front
        self.base = base
        if not any(shift):
            return Move(0, min(kept, slots), size)
        if len(set(shift)) == 1:
            return Move(shift[0] + front, max(shift[0] + front, min(shift[0] + kept, slots)), size, front)
        slot = mx.arange(kept, dtype=mx.int32)
        index = mx.minimum(mx.array(shift, dtype=mx.int32)[:, None] + slot, slots - 1)
        if front:
            index = mx.where(slot < front, slot, index)
        return Move(0, kept, size, index=index[:, None, :, None])

    def _drop_old(self, lengths: list[int]) -> Move:
        """Shrinks a buffer that a long chunk has made larger than the window needs."""
        move = self._slide(lengths, 0)
        self.capacity = move.size
        return move
