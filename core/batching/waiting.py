"""``Waiting``: decides which request may start: first come, first served, within ``max_rows`` and ``max_bytes``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from core.batching.row import Row


class Waiting:
    """The queue of requests, and the reservations of those that have started.

    Args:
        max_rows: requests that run at a time.
        max_bytes: limit for the sum of their reservations.
    """

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self._queue: deque[Row] = deque()
        self._holding: dict[Row, None] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._queue)

    @property
    def rows(self) -> int:
        """Number of running requests."""
        return len(self._holding)

    @property
    def nbytes(self) -> int:
        """Sum of their reservations."""
        return sum(row.nbytes for row in self._holding)

    def add(self, row: Row) -> None:
        """Queues a row. The caller has checked that it fits when it runs alone."""
        self._queue.append(row)

    def over(self) -> list[Row]:
        """The requests that need not start: they have been cancelled, or ask for no tokens."""
        return [row for row in self._queue if row.request.cancelled or not row.request.max_tokens]

    def remove(self, row: Row) -> None:
        """Removes a row that will not start."""
        self._queue.remove(row)

    def mark_crowd(self) -> None:
        """Marks all waiting requests: no row decodes now, so reading their prompts in large passes delays only each
        other."""
        for row in self._queue:
            row.crowd = True

    def first(self) -> Row | None:
        """The next request, if it may start now; it stays in the queue."""
        if not self._queue or self.rows >= self.max_rows:
            return None
        row = self._queue[0]
        # A running request frees its reservation when it ends, and every request fits alone: none waits for ever.
        return row if self.nbytes + row.nbytes <= self.max_bytes else None

    def start(self) -> Row:
        """Removes the first request from the queue, and reserves memory for it."""
        row = self._queue.popleft()
        self._holding[row] = None
        return row

    def release(self, row: Row) -> None:
        """Frees a started row's reservation."""
        del self._holding[row]

    def restore(self, queue: Iterable[Row], holding: Iterable[Row]) -> None:
        """Replaces the state: the rows of ``queue`` wait, and those of ``holding`` have started."""
        self._queue = deque(queue)
        self._holding = dict.fromkeys(holding)
