"""What a step tells the owners of requests: tokens, ends and errors. Knows rows; knows no model."""

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
    """The events of a step, as they come.

    Args:
        pace: learns how long steps take.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._last_read: float | None = None
        self._events: list[BatchEvent] = []

    def take(self) -> list[BatchEvent]:
        """What has come since the last time."""
        events, self._events = self._events, []
        return events

    def tokens(self, flight: Flight, *, more: bool) -> None:
        """Reads a step's tokens, and deals them out.

        Args:
            more: another step runs already, so that the time until it is read is its own.
        """
        tokens = list(flight.read())
        now = time.perf_counter()
        if self._last_read is not None and flight.prompt_tokens is not None:
            self._pace.record(now - self._last_read, flight.prompt_tokens)
        self._last_read = now if more else None
        for row, token in tokens:
            if row.request.done:
                continue  # what ran ahead of its end
            try:
                chunk, reason = row.answer.add(token)
            except Exception as error:  # a tokenizer that does not know the id
                self.fail(row, kept(error))
                continue
            self._events.append(BatchEvent(row.request, chunk))
            if reason is not None:
                self.end(row, reason)

    def end(self, row: Row, reason: FinishReason) -> None:
        """Gives a request its result."""
        row.answer.stats.peak_memory = mx.get_peak_memory()
        chunk = row.answer.finish(reason)
        row.request.result = chunk.result
        self._events.append(BatchEvent(row.request, chunk))

    def fail(self, row: Row, error: Exception) -> None:
        """Ends a request by its error."""
        row.request.error = error
        self._events.append(BatchEvent(row.request, error=error))
