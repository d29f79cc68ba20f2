"""Who may start: first come, first served, within a number of rows and of reserved bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

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
        self._queue: deque[Row] = deque()
        self._holding: dict[Row, None] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._queue)

    @property
    def rows(self) -> int:
        """Requests that run."""
        return len(self._holding)

    @property
    def nbytes(self) -> int:
        """Sum of their reservations."""
        return sum(row.nbytes for row in self._holding)

    def add(self, row: Row) -> None:
        """Queues a row. It fits when it is alone: whoever queues it has seen to that."""
        self._queue.append(row)

    def over(self) -> list[Row]:
        """Those that need not start: they have been cancelled, or want no tokens."""
        return [row for row in self._queue if row.request.cancelled or not row.request.max_tokens]

    def remove(self, row: Row) -> None:
        """Takes a row out that will not start."""
        self._queue.remove(row)

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
        self._holding[row] = None
        return row

    def release(self, row: Row) -> None:
        """Gives a started row's reservation back."""
        del self._holding[row]

    def restore(self, queue: Iterable[Row], holding: Iterable[Row]) -> None:
        """Forgets what there was: these rows wait, and those have started."""
        self._queue = deque(queue)
        self._holding = dict.fromkeys(holding)
