"""``Batch``: many requests on one model, which join and leave at any step (continuous batching; Yu et al., 2022, Orca).

A step of the engine gives the device a chunk of a prompt, if any waits, and one decode step of all rows; only then does
it read the ids of the step before. So the device is always one step ahead of the host, and a row that has ended may
have run one step more, which nobody sees.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from core.batching.answer import Answer
from core.batching.decode import decode_logits
from core.batching.groups import Groups, capacity_class
from core.batching.options import wanted
from core.batching.pace import Pace
from core.batching.prefill import Reading, next_reading
from core.batching.request import BatchEvent, BatchRequest
from core.batching.row import Row
from core.batching.waiting import Waiting
from core.device import memory_limits, wired_memory
from core.errors import InsufficientMemoryError, UsageError
from core.generation.chooser import Choice, Chooser
from core.language_model import LanguageModel
from core.nn import Cache, depends_on_length
from core.nn.rows import RowTemplate

_SHARE = 0.9  # of the memory that is free when the batch is made, for caches


@dataclass(frozen=True, slots=True)
class _Flight:
    """A decode step that was given to the device."""

    choice: Choice
    rows: list[Row]
    prompt_tokens: int


class Batch:
    """Continuous batching.

    ``submit`` and ``BatchRequest.cancel`` may be called by any thread; ``step``, and iterating, by one at a time.

    Args:
        model: a ``LanguageModel``, or a ``core.nn.Decoder`` for prompts of ids.
        max_rows: requests that run at a time; others wait, first come, first served.
        max_bytes: of the caches, reserved for prompt and ``max_tokens`` of each request; None takes nine tenths of the
            device's memory that is free now.
        prefill_chunk: prompt tokens between two decode steps, at most, while any request decodes. Fewer are taken where
            a chunk makes a step take more than about twice as long.
        prefill_burst: prompt tokens at once while nothing decodes, and while many short prompts wait.

    Raises:
        UsageError: a setting out of range, or a model whose rotary frequencies depend on the sequence's length: all
            rows of a step would get those of the longest.
    """

    def __init__(
        self,
        model: LanguageModel | Any,
        *,
        max_rows: int = 32,
        max_bytes: int | None = None,
        prefill_chunk: int = 512,
        prefill_burst: int = 4096,
    ) -> None:
        for name, value in (
            ("max_rows", max_rows),
            ("prefill_chunk", prefill_chunk),
            ("prefill_burst", prefill_burst),
        ):
            if value < 1:
                raise UsageError(f"{name} is out of range", expected="1 or more", found=value)
        self._source = model
        self._model = model.model if isinstance(model, LanguageModel) else model
        if depends_on_length(self._model):
            raise UsageError(
                "the rotary frequencies of this model depend on the sequence's length, which differs within a batch",
                hint="Generate its requests one after another.",
            )
        self._template = RowTemplate(self._model, self._make_cache)
        if max_bytes is None:
            max_bytes = int(_SHARE * max(0, (memory_limits()[0] or 0) - mx.get_active_memory()))
        self._waiting = Waiting(max_rows, max_bytes)
        self._burst = prefill_burst
        self._pace = Pace(prefill_chunk)
        self._readings: deque[Reading] = deque()
        self._groups: Groups[Row] = Groups(self._template, self._make_cache)
        self._chooser = Chooser(self._model.vocab_size)
        self._rows: list[Row] = []
        self._flight: _Flight | None = None
        self._prompt_tokens = 0
        self._last_read: float | None = None
        self._lock = threading.Lock()
        self._inbox: deque[Row] = deque()
        self._numbers = itertools.count()
        self._wired = contextlib.ExitStack()

    @property
    def pending(self) -> bool:
        """Requests have been submitted whose last event no step has returned."""
        return bool(self._inbox or self._waiting or self._readings or self._rows or self._flight)

    def submit(self, prompt: Any, **options: Any) -> BatchRequest:
        """Queues a request.

        Args:
            prompt: as for ``LanguageModel.stream``; for a ``Decoder``, ids.
            options: those of ``LanguageModel.stream``; for a ``Decoder``, ``max_tokens``, ``eos`` and those of
                ``Sampling``.

        Raises:
            UsageError, TokenizerError, ChatTemplateError: as ``LanguageModel.stream``.
            InsufficientMemoryError: it would not fit even alone.
        """
        asked = wanted(self._source, prompt, options)
        total = len(asked.prompt_ids) + asked.max_tokens
        nbytes = self._template.row_bytes(capacity_class(total) if self._template.grows else 0)
        if nbytes > self._waiting.max_bytes:
            raise InsufficientMemoryError(
                "the request's cache would not fit, even alone",
                expected=f"at most {self._waiting.max_bytes:,} bytes",
                found=f"{nbytes:,} for {total:,} tokens",
                hint="Ask for fewer max_tokens, or give the batch more max_bytes.",
            )
        request = BatchRequest(next(self._numbers), asked.prompt_ids, asked.max_tokens, asked.sampling)
        self._inbox.append(Row(request, Answer(asked), nbytes, asked.logprobs))
        return request

    def step(self) -> list[BatchEvent]:
        """One step of the engine; returns what it found out, often about the step before."""
        events: list[BatchEvent] = []
        self._admit(events)
        self._read_prompts()
        flight = self._decode()
        self._flight, previous = flight, self._flight
        if previous is not None:
            self._report(previous, events)
        return events

    def __iter__(self) -> Iterator[BatchEvent]:
        """Steps until every request is done."""
        while self.pending:
            yield from self.step()

    def _make_cache(self, rows: int) -> Cache:
        return self._model.make_cache(rows)

    def _admit(self, events: list[BatchEvent]) -> None:
        """Takes in what other threads have asked for, and lets go of what has ended."""
        while self._inbox:
            self._waiting.add(self._inbox.popleft())
        for row in self._waiting.cancelled():
            self._end(row, "cancelled", events)
        for reading in list(self._readings):
            if all(row.request.cancelled for row in reading.rows):
                self._readings.remove(reading)
                for row in reading.rows:
                    self._waiting.release(row)
                    self._end(row, "cancelled", events)
        for row in list(self._rows):
            if row.request.cancelled and not row.request.done:
                self._end(row, "cancelled", events)
            if row.request.done or row.submitted >= row.request.max_tokens:
                self._leave(row)

    def _read_prompts(self) -> None:
        """At most one chunk of prompts."""
        self._prompt_tokens = 0
        # Many short prompts that wait weigh more than the few rows that wait for them.
        crowd = 2 * self._waiting.short(self._pace.limit) >= len(self._rows)
        budget = max(self._burst, self._pace.limit) if crowd or not self._rows else self._pace.chunk
        # Beside a long prompt, a short one may come in; of two long ones, the first is the first to finish.
        reading = next_reading(self._waiting, budget, self._make_cache, short=bool(self._readings))
        if reading is not None:
            self._readings.append(reading)
        if not self._readings:
            return
        self._readings.rotate(-1)
        reading = self._readings[0]
        long = reading.left > self._pace.limit
        self._prompt_tokens = reading.chunk(self._model, self._pace.chunk if long and self._rows else budget)
        if reading.left == 0:
            self._readings.remove(reading)
            self._join(reading)

    def _join(self, reading: Reading) -> None:
        self._groups.join(reading.rows, [row.total for row in reading.rows], reading.cache)
        for row in reading.rows:
            self._chooser.join(row.request.sampling, row.request.prompt_ids, row.logprobs)
            self._rows.append(row)

    def _leave(self, row: Row) -> None:
        index = self._rows.index(row)
        self._chooser.leave(index)
        del self._rows[index]
        self._groups.leave(row)
        self._waiting.release(row)

    def _decode(self) -> _Flight | None:
        """Gives the device the next token of every row."""
        if not self._rows:
            return None
        self._groups.settle()
        places = self._groups.places
        logits = decode_logits(self._model, self._groups.cache, self._tokens(places))
        where = {row: place for place, row in enumerate(places)}
        order = [where[row] for row in self._rows]
        if order != list(range(len(places))):
            logits = mx.take(logits, mx.array(order, dtype=mx.int32), axis=0)
        positions = [len(row.request.prompt_ids) + row.submitted for row in self._rows]
        choice = self._chooser.choose(logits, positions)
        mx.async_eval([part for part in (choice.ids, choice.logprobs, choice.top_ids, choice.top_logprobs) if part is not None])
        for index, row in enumerate(self._rows):
            row.submitted += 1
            row.index = index
        return _Flight(choice, list(self._rows), self._prompt_tokens)

    def _tokens(self, places: list[Row | None]) -> mx.array:
        """The next token of each place: the last step's, still on the device, or a prompt's last."""
        before = None if self._flight is None else self._flight.choice.ids
        known = 0 if before is None else before.size
        fresh: list[int] = []
        index = []
        for row in places:
            if row is not None and row.submitted:
                index.append(row.index)
            else:
                index.append(known + len(fresh))
                fresh.append(0 if row is None else row.request.prompt_ids[-1])
        if not fresh and index == list(range(known)):
            assert before is not None
            return before
        pool = [] if before is None else [before]
        pool += [mx.array(fresh, dtype=mx.uint32)] if fresh else []
        ids = pool[0] if len(pool) == 1 else mx.concatenate(pool)
        return ids if index == list(range(ids.size)) else mx.take(ids, mx.array(index, dtype=mx.int32))

    def _report(self, flight: _Flight, events: list[BatchEvent]) -> None:
        """Reads a step's ids, and deals them out."""
        ids = flight.choice.ids.tolist()
        now = time.perf_counter()
        if self._last_read is not None:
            self._pace.record(now - self._last_read, flight.prompt_tokens)
        self._last_read = now if self._flight is not None else None
        for row, token_id in zip(flight.rows, ids, strict=True):
            if row.request.done:
                continue  # what ran ahead of its end
            chunk, reason = row.answer.add(token_id)
            events.append(BatchEvent(row.request, chunk))
            if reason is not None:
                self._end(row, reason, events)

    def _end(self, row: Row, reason: str, events: list[BatchEvent]) -> None:
        chunk = row.answer.finish(reason)
        row.request.result = chunk.result
        events.append(BatchEvent(row.request, chunk))
