"""Who may start: first come, first served, within a number of rows and of reserved bytes. Knows no arrays."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from core.batching.row import Row


class Waiting:
    """The queue of requests, and what those that have started hold.

    Args:
        max_rows: requests that run at a time.
        max_bytes: sum of their reservations.
    """

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.rows = 0
        self.nbytes = 0
        self._queue: deque[Row] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._queue)

    def add(self, row: Row) -> None:
        """Queues a row. It fits when it is alone: whoever queues it has seen to that."""
        self._queue.append(row)

    def cancelled(self) -> list[Row]:
        """Takes out those that have been cancelled."""
        out = [row for row in self._queue if row.request.cancelled]
        for row in out:
            self._queue.remove(row)
        return out

    def mark_crowd(self) -> None:
        """Says of all that wait now that nobody decodes whom their prompts would hold up but each other."""
        for row in self._queue:
            row.crowd = True

    def first(self) -> Row | None:
        """The next to start, if it may start now; it stays queued."""
        if not self._queue or self.rows >= self.max_rows:
            return None
        row = self._queue[0]
        # What is reserved for those that run comes free when they end, and alone each fits: nobody waits for ever.
        return row if self.nbytes + row.nbytes <= self.max_bytes else None

    def start(self) -> Row:
        """Takes the first out, and reserves for it."""
        row = self._queue.popleft()
        self.rows += 1
        self.nbytes += row.nbytes
        return row

    def release(self, row: Row) -> None:
        """Gives a started row's reservation back."""
        self.rows -= 1
        self.nbytes -= row.nbytes
