"""``View``: the slots of a cache that the queries of one step see: a range, and a mask where a range is not enough.

It is built once a step for all blocks of a kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from core.kernels.prefill_attention_reference import EVERYTHING
from core.nn.span import Limit, Reach, Write


class View:
    """The slots that a step's queries see.

    Args:
        starts: position of each row's first query.
        seq: queries of each row.
        write: how the step writes its keys; None without a cache, when queries see the step's keys only.
        reach: what the cache keeps.
        window: keys that the block's queries see, their own included; None: all that are kept.

    Attributes:
        first, last: the range of slots to attend to.
        decodes: one query a row, and a cache.
        masked: a mask is needed within the range.
    """

    def __init__(self, starts: Sequence[int], seq: int, write: Write | None, reach: Reach, window: int | None) -> None:
        self._starts = starts
        self._seq = seq
        self._write = write
        self._kept, self._recent = 0, window
        if isinstance(reach, Limit) and (window is None or window > reach.tokens):
            self._kept, self._recent = reach.kept, reach.tokens - reach.kept
        self._over: dict[int, mx.array] = {}
        self._mask: mx.array | None = None
        self._bounds: mx.array | None = None
        self._windows: mx.array | None = None
        self._aligned = write is None or write.aligned
        self.decodes = seq == 1 and write is not None
        self.first, self.last = 0, seq if write is None else write.last
        if self._aligned and self._recent is not None and not self._kept:
            self.first = max(0, starts[0] - self._recent + 1 - self._base(0))
        hides = self._recent is not None and starts[0] + seq - self._recent > self._kept
        # With kept tokens at the start, hidden slots lie between visible ones.
        self.masked = not self._aligned or (hides and (self._kept > 0 or seq > 1))

    @property
    def mask(self) -> mx.array | str | None:
        """For ``mx.fast.scaled_dot_product_attention`` over the range; None where nothing is hidden."""
        if not self.masked:
            return None if self._seq == 1 else "causal"
        if not self._aligned or self._kept:
            return self.over(self.last)
        if self._mask is None:
            # Only differences of positions matter here, so count from the first visible key.
            keys = self.last - self.first
            queries = mx.arange(keys - self._seq, keys, dtype=mx.int32)[:, None]
            self._mask = self._band(queries, mx.arange(keys, dtype=mx.int32))
        return self._mask

    def over(self, slots: int) -> mx.array:
        """The mask over the first ``slots`` slots, in use or not: bool ``[batch or 1, 1, seq, slots]``."""
        if slots not in self._over:
            self._over[slots] = self._between(slots)
        return self._over[slots]

    @property
    def bounds(self) -> mx.array:
        """For one query a row, the slots that it sees: int32 ``[rows, 3]``, as ``decode_attention_kernel`` takes it."""
        if self._bounds is None:
            rows = []
            for row in range(len(self._starts)):
                slot = self._slot(row)
                first = 0 if self._recent is None else max(0, slot - self._recent + 1)
                rows.append([self._kept, first, slot + 1] if first > self._kept else [0, 0, slot + 1])
            self._bounds = mx.array(rows, dtype=mx.int32)
        return self._bounds

    @property
    def windows(self) -> mx.array:
        """For several queries a row, the slots that they see: int32 ``[rows, 3]``, for the prefill's kernel."""
        if self._windows is None:
            window = EVERYTHING if self._recent is None else min(self._recent, EVERYTHING)
            rows = [[self._kept, window, self._slot(row) - self.first] for row in range(len(self._starts))]
            self._windows = mx.array(rows, dtype=mx.int32)
        return self._windows

    def _slot(self, row: int) -> int:
        """The slot of a row's first query."""
        return self._starts[row] - self._base(row)

    def _base(self, row: int) -> int:
        return 0 if self._write is None else self._write.base[row]

    def _between(self, slots: int) -> mx.array:
        """The mask computed from positions, counted like slots; unused slots lie behind every query."""
        steps, keys = mx.arange(self._seq, dtype=mx.int32)[:, None], mx.arange(slots, dtype=mx.int32)
        offsets = [self._slot(row) for row in range(len(self._starts))]
        if len(set(offsets)) == 1:
            queries = (steps + offsets[0])[None, None]
        else:
            queries = mx.array(offsets, dtype=mx.int32)[:, None, None, None] + steps
        return self._band(queries, keys, keys < self._kept if self._kept else None)

    def _band(self, queries: mx.array, keys: mx.array, front: mx.array | None = None) -> mx.array:
        mask = keys <= queries
        if self._recent is None:
            return mask
        near = keys > queries - self._recent
        return mask & (near if front is None else near | front)
