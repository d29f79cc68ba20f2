"""``Running``: the decoding rows, with their places in the caches, their next tokens, and the chooser of their tokens.

Rows have two orders: by groups in the caches, and in the order of joining in the chooser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from core.batching.decode import decode_logits
from core.batching.groups import Groups
from core.batching.prefill import Chunk
from core.batching.row import Row
from core.generation.chooser import Choice, Chooser
from core.nn import Cache
from core.nn.rows import RowTemplate


class Running:
    """The rows of a decode step.

    Args:
        model: a ``core.nn.Decoder``.
        template: the kind of cache that each row gets.
        make_cache: makes a cache like the template.

    Attributes:
        rows: in the order in which they joined.
        groups: their caches.
    """

    def __init__(self, model: Any, template: RowTemplate, make_cache: Callable[[int], Cache]) -> None:
        self._model = model
        self.rows: list[Row] = []
        self.groups: Groups[Row] = Groups(template, make_cache)
        self._chooser = Chooser(model.vocab_size)
        self._places: list[Row | None] = []

    def join(self, rows: Sequence[Row], cache: Cache) -> None:
        """Adds rows: all of them, or none if that fails. The cache holds their prompts without the last ids."""
        try:
            self.groups.join(rows, [row.total for row in rows], cache)
            for row in rows:
                self._chooser.join(row.request.sampling, row.request.prompt_ids, row.logprobs, row.eos)
                self.rows.append(row)
        except Exception:
            for row in rows:
                if row in self.rows:
                    self.leave(row)
                elif row in self.groups:
                    self.groups.leave(row)
            raise

    def leave(self, row: Row) -> None:
        """Removes a row."""
        index = self.rows.index(row)
        self._chooser.leave(index)
        del self.rows[index]
        self.groups.leave(row)

    def logits(self, last: mx.array | None, chunk: Chunk | None = None) -> mx.array:
        """Processes the next token of every row. Returns ``[places, vocab]``, for ``choose``.

        Args:
            last: the ids of the step before, still on the device.
            chunk: prompt tokens to read in the same pass.
        """
        self.groups.settle()
        self._places = self.groups.places
        return decode_logits(self._model, self.groups.caches, self._tokens(last), chunk)

    def choose(self, logits: mx.array) -> Choice:
        """Chooses the next token of every row.

        Raises:
            ProcessorError: a row's own processor failed. ``choose`` can be called again without that row.
        """
        where = {row: place for place, row in enumerate(self._places)}
        order = [where[row] for row in self.rows]
        if order != list(range(len(self._places))):
            logits = mx.take(logits, mx.array(order, dtype=mx.int32), axis=0)
        choice = self._chooser.choose(logits, [len(row.request.prompt_ids) + row.submitted for row in self.rows])
        for index, row in enumerate(self.rows):
            row.submitted += 1
            row.index = index
        return choice

    def _tokens(self, last: mx.array | None) -> mx.array:
        """The input token of each place: the last step's choice, or the last prompt id of a row that has just
        joined."""
        known = 0 if last is None else last.size
        fresh: list[int] = []
        index = []
        for row in self._places:
            if row is not None and row.submitted:
                index.append(row.index)
            else:
                index.append(known + len(fresh))
                fresh.append(0 if row is None else row.request.prompt_ids[-1])
        pool = [] if last is None else [last.astype(mx.uint32)]
        pool += [mx.array(fresh, dtype=mx.uint32)] if fresh else []
        ids = pool[0] if len(pool) == 1 else mx.concatenate(pool)
        return ids if index == list(range(ids.size)) else mx.take(ids, mx.array(index, dtype=mx.int32))
