"""Interrupts at chosen lines: Ctrl-C at the n-th line that runs within the rooms that a batch uses."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import core
from core.batching import BatchEvent, BatchRequest
from core.prompt_cache import PrefixCache
from tests.batching.models import alone, model, prompt

_ROOMS = ("batching", "generation", "nn", "prompt_cache")
_WATCHED = tuple(f"{Path(core.__file__).parent / room}/" for room in _ROOMS)
MOST_STEPS = 400


def _is_with(frame: FrameType) -> bool:
    """Tracing stops at such a line once more before the block's ``__exit__``, where Python handles no signal."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


class Lines:
    """Counts lines, and raises ``KeyboardInterrupt`` right before chosen ones run.

    Args:
        at: numbers of lines, rising, from 0.
    """

    def __init__(self, *at: int) -> None:
        self.count = 0
        self.where: list[str] = []
        self._at = list(at)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Lines that run within are counted."""
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_WATCHED) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and not _is_with(frame):
            self.count += 1
            if self._at and self.count > self._at[0]:
                del self._at[0]
                self.where.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
                raise KeyboardInterrupt
        return self._line


class Schedule:
    """Requests of many sorts that come, are read, share beginnings, draw, are cancelled and leave.

    Args:
        kind: of the model.
        lines: which of them are interrupted.
        loop: take events from a loop over the batch, instead of from its steps.
    """

    def __init__(self, kind: str, lines: Lines, *, loop: bool = False) -> None:
        self.kind, self.lines, self.loop = kind, lines, loop
        self.store = PrefixCache(12_000)
        self.batch = core.Batch(model(kind), max_rows=3, prefill_chunk=4, prefill_burst=8, prefix=self.store)
        self.requests: list[tuple[BatchRequest, dict[str, Any]]] = []
        self.events: list[BatchEvent] = []
        self.interrupts = 0

    def submit(self, ids: list[int], max_tokens: int, **options: Any) -> BatchRequest:
        request = self.batch.submit(ids, max_tokens=max_tokens, **options)
        self.requests.append((request, options))
        return request

    def play(self) -> None:
        """The whole schedule."""
        repeating = {"repetition_penalty": 1.3, "dry_multiplier": 0.5, "penalty_context": 6}
        self.submit(prompt(1, 3), 7)
        self.submit(prompt(2, 6), 5, temperature=0.8, seed=3, **repeating)
        self.submit(prompt(3, 2), 0)
        self.step(3)
        self.submit(prompt(4, 15), 3, logprobs=2)  # is read in chunks beside them
        self.submit(prompt(1, 3) + prompt(5, 2), 4)  # begins like the first
        cancelled = self.submit(prompt(6, 4), 9)
        self.step(6)
        cancelled.cancel()
        self.submit(prompt(7, 30), 4).cancel()
        self.submit(prompt(1, 5), 2, presence_penalty=0.5)
        steps = 0
        while self.batch.pending:
            self.step(1)
            steps += 1
            assert steps < MOST_STEPS, "it never ends"

    def step(self, count: int) -> None:
        """Some steps of the batch; or so many events of a loop over it."""
        for _ in range(count):
            try:
                with self.lines.watched():
                    if self.loop:
                        for event in self.batch:
                            self.events.append(event)
                            break
                    else:
                        self.events += self.batch.step()
            except KeyboardInterrupt:
                self.interrupts += 1

    def check(self) -> None:
        """Every request has ended as it must and was told so once, nothing is held, and the batch goes on working."""
        ends = [event.request for event in self.events if event.error is not None or event.result is not None]
        assert len(ends) == len(set(ends)) == len(self.requests), f"{len(ends)} ends of {len(self.requests)} requests"
        for request, options in self.requests:
            assert request.done
            told = [e.chunk.token_id for e in self.events if e.request is request and e.chunk and not e.result]
            if request.result is None:
                assert "interrupted" in str(request.error), request.error
                assert self.interrupts
                continue
            found = tuple(request.result.token_ids)
            assert found == tuple(told)
            options = {name: value for name, value in options.items() if name != "logprobs"}
            assert found == alone(self.kind, tuple(request.prompt_ids), request.max_tokens, **options)[: len(found)]
            assert len(found) == request.max_tokens or request.cancelled
        assert (
            self.batch._scheduler.waiting.rows,
            self.batch._scheduler.waiting.nbytes,
            len(self.batch._scheduler.waiting),
        ) == (0, 0, 0)
        assert self.batch._scheduler.running.groups.places == []
        assert self.store.nbytes <= self.store.max_bytes
        again = [self.batch.submit(ids, max_tokens=4) for ids in (prompt(1, 6), prompt(4, 15), prompt(2, 7))]
        steps = 0
        while self.batch.pending:
            self.batch.step()
            steps += 1
            assert steps < MOST_STEPS, "what comes after never ends"
        for request in again:
            assert request.result is not None, request.error
            assert tuple(request.result.token_ids) == alone(self.kind, tuple(request.prompt_ids), 4)
