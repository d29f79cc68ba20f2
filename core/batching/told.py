"""``Told``: the events of a step for the owners of requests: tokens, ends and errors."""

from __future__ import annotations

import time

import mlx.core as mx

from core.batching.failure import kept
from core.batching.flight import Flight
from core.batching.pace import Pace
from core.batching.request import BatchEvent
from core.batching.row import Row
from core.generation import FinishReason


class Told:
    """The open requests, and the events that have not been taken yet.

    A request ends when its last event exists. Everything else that an end changes follows from that event, so
    ``settle`` can complete an end that was interrupted.

    Args:
        pace: records how long steps take.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._last_read: float | None = None
        self._open: dict[Row, None] = {}
        self._events: list[BatchEvent] = []

    def __bool__(self) -> bool:
        """Whether there are open requests or events."""
        return bool(self._open or self._events)

    @property
    def open(self) -> list[Row]:
        """The requests that have not ended, in the order in which they came."""
        return list(self._open)

    @property
    def untold(self) -> int:
        """Number of events that have not been taken."""
        return len(self._events)

    def expect(self, row: Row) -> bool:
        """Opens a request; returns False if it was open already."""
        if row in self._open:
            return False
        self._open[row] = None
        return True

    def take(self) -> list[BatchEvent]:
        """Takes all events since the last call. When interrupted, it takes none."""
        before = self._events
        try:
            self._events = []
            return before
        except BaseException:
            self._events = before
            raise

    def take_first(self) -> BatchEvent:
        """Takes the oldest event. When interrupted, it takes none."""
        before = self._events
        try:
            first, *self._events = before
            return first
        except BaseException:
            self._events = before
            raise

    def tokens(self, flight: Flight, *, more: bool) -> None:
        """Reads a step's tokens, and makes the event of each row.

        Args:
            flight: the step.
            more: another step runs already, so the time from this read to the next is its duration.
        """
        tokens = list(flight.read())
        now = time.perf_counter()
        if self._last_read is not None and flight.prompt_tokens is not None:
            self._pace.record(now - self._last_read, flight.prompt_tokens)
        self._last_read = now if more else None
        for row, token in tokens:
            if row.request.done:
                continue  # a token that was computed after the row's end
            try:
                chunk, reason = row.answer.add(token)
            except Exception as error:  # a tokenizer that does not know the id
                self.fail(row, kept(error))
                continue
            self._events.append(BatchEvent(row.request, chunk))
            if reason is not None:
                self.end(row, reason)

    def end(self, row: Row, reason: FinishReason) -> None:
        """Ends an open request with its result."""
        if row not in self._open:
            return
        row.answer.stats.peak_memory = mx.get_peak_memory()
        try:
            chunk = row.answer.finish(reason)
        except Exception as error:  # a tokenizer that cannot decode the rest
            self.fail(row, kept(error))
            return
        self._close(row, BatchEvent(row.request, chunk))

    def fail(self, row: Row, error: Exception) -> None:
        """Ends an open request with its error."""
        self._close(row, BatchEvent(row.request, error=error))

    def settle(self) -> None:
        """Completes the end of open requests that have their last event; an interrupt may have stopped it anywhere."""
        ends = {event.request: event for event in self._events if event.error is not None or event.result is not None}
        for row in self.open:
            event = ends.get(row.request)
            if event is not None:
                self._settle(row, event)

    def _close(self, row: Row, event: BatchEvent) -> None:
        if row in self._open:
            self._events.append(event)
            self._settle(row, event)

    def _settle(self, row: Row, event: BatchEvent) -> None:
        row.request.result, row.request.error = event.result, event.error
        del self._open[row]
