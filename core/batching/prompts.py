"""``Prompts``: decides which prompt is read next, and how much of it. Long ones go in chunks, several short ones
together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from core.batching.groups import joining_class
from core.batching.pace import Pace
from core.batching.prefill import Reading
from core.batching.prefixes import Prefixes
from core.batching.row import Row
from core.batching.waiting import Waiting
from core.nn import Cache


class Prompts:
    """The prompts that are being read: one long one at most, and short ones in turn with it.

    Args:
        waiting: requests whose prompts have not begun.
        prefixes: the cached beginnings of prompts.
        make_cache: makes a cache for a number of rows, with room for a number of tokens.
        pace: the size of chunks while other rows decode.
        burst: tokens in one pass while none does.
    """

    def __init__(
        self, waiting: Waiting, prefixes: Prefixes, make_cache: Callable[[int, int], Cache], pace: Pace, burst: int
    ) -> None:
        self._waiting = waiting
        self._prefixes = prefixes
        self._make_cache = make_cache
        self._pace = pace
        self._burst = max(burst, pace.limit)
        self._readings: deque[Reading] = deque()

    def __contains__(self, reading: Reading) -> bool:
        """Whether these prompts have begun, are not yet read, and have not failed."""
        return reading in self._readings

    @property
    def rows(self) -> list[Row]:
        """The requests whose prompts have begun, and which do not decode yet."""
        return [row for reading in self._readings for row in reading.rows]

    def turn(self, decoding: bool) -> tuple[Reading | None, int]:
        """The prompts to read next, and the maximum number of their tokens."""
        if not decoding:
            self._waiting.mark_crowd()
        first = self._waiting.first()
        budget = self._burst if not decoding or (first is not None and first.crowd) else self._pace.chunk
        new = self._begin(budget) if len(self._readings) < 2 else None
        if new is not None:
            self._readings.append(new)
        if not self._readings:
            return None, 0
        self._readings.rotate(-1)
        reading = self._readings[0]
        if decoding and (reading is not new or reading.left > budget):
            budget = self._pace.chunk
        return reading, budget

    def remove(self, reading: Reading) -> None:
        """Removes prompts that are read, or have failed."""
        if reading in self._readings:
            self._readings.remove(reading)

    def cancelled(self) -> list[Reading]:
        """The prompts whose requests have all been cancelled."""
        return [reading for reading in self._readings if all(row.request.cancelled for row in reading.rows)]

    def restore(self, failed: Reading | None) -> None:
        """Removes the prompts that an unfinished step was reading (``failed``), and those that began in that step."""
        self._readings = deque(
            reading for reading in self._readings if reading is not failed and all(row.started for row in reading.rows)
        )

    def _begin(self, budget: int) -> Reading | None:
        """Starts the next prompt, together with the following ones if all fit one call of ``budget`` tokens."""
        rows: list[Row] = []
        longest = real = 0
        while (row := self._waiting.first()) is not None:
            self._prefixes.look_up(row)
            tokens = len(row.to_read)
            alone = row.found is not None or tokens > budget
            if self._readings and tokens > self._pace.limit:
                break  # of two long prompts, the first one finishes first
            if rows:
                padded = (len(rows) + 1) * max(longest, tokens)
                # Padding may take at most as many places as tokens do.
                if alone or padded > budget or padded > 2 * (real + tokens) or row.crowd != rows[0].crowd:
                    break
            rows.append(self._waiting.start())
            longest, real = max(longest, tokens), real + tokens
            if alone:
                break
        if not rows:
            return None
        found, rows[0].found = rows[0].found, None
        if found is None:
            # Allocate the full size at once: growing copies, and a long copy delays the rows that decode.
            room = max(joining_class(len(row.request.prompt_ids) - 1, row.total) for row in rows)
            found = self._make_cache(len(rows), room)
        return Reading(rows, found)
