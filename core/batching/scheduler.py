"""``Scheduler``: one step of the engine. It decides which requests join and leave, which prompt is read, and which rows
decode."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from core.batching.failure import kept
from core.batching.flight import Flight
from core.batching.pace import Pace
from core.batching.prefill import Chunk, Reading
from core.batching.prefixes import Prefixes
from core.batching.prompts import Prompts
from core.batching.row import Row
from core.batching.running import Running
from core.batching.told import Told
from core.batching.waiting import Waiting
from core.device import explained
from core.errors import ProcessorError
from core.nn import Cache
from core.nn.rows import RowTemplate

if TYPE_CHECKING:
    from core.prompt_cache import PrefixCache

_ALLOCATED = 1 << 29  # bytes of a long prompt's cache that one step allocates, about: a GPU takes a millisecond


class Scheduler:
    """All requests that have not ended, and the steps that process them.

    An error or an interrupt may stop a step anywhere. Call ``recover`` before the next step.

    Args:
        model: a ``core.nn.Decoder``.
        template: the kind of cache that each row gets.
        make_cache: makes a cache like the template.
        waiting: the queue, with its limits.
        prefix: a prefix cache.
        prefill_chunk, prefill_burst: as for ``Batch``.

    Attributes:
        waiting: the requests whose prompts have not begun.
        prompts: the prompts that are being read.
        running: the rows that decode.
        told: the events for the owners of requests.

    Raises:
        CacheError: ``prefix`` belongs to another model or other settings.
    """

    def __init__(
        self,
        model: Any,
        template: RowTemplate,
        make_cache: Callable[[int], Cache],
        waiting: Waiting,
        prefix: PrefixCache | None,
        prefill_chunk: int,
        prefill_burst: int,
    ) -> None:
        self._model = model
        self._template = template
        self._make_cache = make_cache
        pace = Pace(prefill_chunk)
        self._prefixes = Prefixes(prefix, make_cache)
        self._flight: Flight | None = None
        self.waiting = waiting
        self.prompts = Prompts(waiting, self._prefixes, template.make, pace, prefill_burst)
        self.running = Running(model, template, make_cache)
        self.told = Told(pace)
        # Parts of a step that an interrupt leaves unfinished: the prompts that it reads, and the rows that decode.
        self._reading: Reading | None = None
        self._moving = False

    @property
    def pending(self) -> bool:
        """Whether there is still work: an event that was not taken, a request that has not ended, or a step that was
        not read."""
        return bool(self.told or self.prompts.rows or self.running.rows or self._flight)

    def step(self, inbox: deque[Row]) -> None:
        """Queues the submitted rows, gives the device the next step, and reads the tokens of the step before.

        Args:
            inbox: submitted rows; each is removed when it is queued.
        """
        with explained():
            self._admit_and_release(inbox)
            self._decode(*self._turn())
        self._reading = None

    def recover(self, error: Exception) -> None:
        """Fails the requests that an unfinished step was processing. If it is interrupted, call it again.

        The queue, the reservations and the prompts are made anew from the open requests.
        """
        self.told.settle()
        if self._moving:
            self.running = Running(self._model, self._template, self._make_cache)
            self._flight = None
        self.prompts.restore(self._reading)
        whole = {*self.running.rows, *self.prompts.rows, *(self._flight.rows if self._flight is not None else ())}
        for row in self.told.open:
            if row.started and row not in whole:
                self.told.fail(row, error)
            elif not row.started:
                row.sought = row.found is not None  # the prompts that did not begin have lost what was found
        queue = [row for row in self.told.open if not row.started]
        self.waiting.restore(queue, holding=[*self.prompts.rows, *self.running.rows])
        self._reading, self._moving = None, False

    def _admit_and_release(self, inbox: deque[Row]) -> None:
        """Queues the submitted rows, and frees the rows that have ended or will end with the step that runs now."""
        while inbox:
            row = inbox[0]
            if self.told.expect(row):
                self.waiting.add(row)
            inbox.popleft()
        for row in self.waiting.over():
            self.told.end(row, "cancelled" if row.request.max_tokens else "length")
            self.waiting.remove(row)
        for reading in self.prompts.cancelled():
            for row in reading.rows:
                self.told.end(row, "cancelled")
                self.waiting.release(row)
            self.prompts.remove(reading)
        for row in list(self.running.rows):
            if row.request.cancelled and not row.request.done:
                self.told.end(row, "cancelled")
            if row.request.done or row.submitted >= row.request.max_tokens:
                tokens = len(row.request.prompt_ids) - 1 + row.submitted
                try:
                    self._prefixes.take(row, self.running.groups, self._template.row_bytes(tokens))
                except Exception as error:  # no memory for a copy: only the prefix cache needs it
                    kept(error)
                self._moving = True
                self._leave(row)
                self._moving = False

    def _turn(self) -> tuple[Chunk | None, int | None]:
        """Chooses the prompt tokens to read next: returns a chunk for the next pass, or reads them in a pass of their
        own.

        The number is that of the tokens read in such a pass. It is None when the step's duration must not be counted.
        """
        decoding = bool(self.running.rows)
        reading, budget = self.prompts.turn(decoding)
        if reading is None:
            return None, 0
        self._reading = reading
        for row in reading.rows:
            row.started = True
        turn: tuple[Chunk | None, int | None] = None, 0
        with self._failing_only(reading):
            if decoding and reading.left > budget and reading.allocate(_ALLOCATED):
                turn = None, None
            elif decoding and reading.left and not self._template.keeps_state:
                turn = reading.cut(self._model, budget), 0
            else:
                # While rows decode, no wait is needed: reading their last ids has waited for the chunk before the last
                # one.
                tokens = reading.read(self._model, budget, wait=not decoding)
                self._join(reading)
                turn = None, tokens
        return turn

    def _join(self, reading: Reading) -> None:
        """Lets the rows of fully read prompts decode."""
        if reading.left == 0:
            self._moving = True
            self.running.join(reading.rows, reading.cache)
            self.prompts.remove(reading)

    def _decode(self, chunk: Chunk | None, prompt_tokens: int | None) -> None:
        """Gives the device the next step, and then reads the last one's tokens."""
        if chunk is None:
            self._reading = None
        self._moving = True
        previous = self._flight
        self._flight = self._fly(previous, chunk, prompt_tokens)
        self._prefixes.store()
        if previous is not None:
            self.told.tokens(previous, more=self._flight is not None)
        self._moving = False

    def _fly(self, previous: Flight | None, chunk: Chunk | None, prompt_tokens: int | None) -> Flight | None:
        """Gives the device the next token of every row, and with them a chunk of the prompts."""
        if not self.running.rows:
            self.running.groups.settle()  # frees caches that no row uses
            return None
        logits = self.running.logits(None if previous is None else previous.choice.ids, chunk)
        if chunk is not None:
            prompt_tokens = chunk.reading.took(chunk)
        flight = None
        while self.running.rows:
            try:
                choice = self.running.choose(logits)
            except ProcessorError as error:  # one row's own processor failed; nothing was recorded for the others
                row = self.running.rows[error.row]
                self._leave(row)
                self.told.fail(row, kept(error))
                continue
            mx.async_eval(choice.arrays())
            flight = Flight(choice, list(self.running.rows), prompt_tokens)
            break
        if chunk is not None:
            with self._failing_only(chunk.reading):
                self._join(chunk.reading)
        return flight

    @contextlib.contextmanager
    def _failing_only(self, reading: Reading) -> Iterator[None]:
        """An error inside this block fails these prompts only."""
        moving = self._moving
        try:
            with explained():
                yield
        except Exception as error:
            failure = kept(error)
            for row in reading.rows:
                self.told.fail(row, failure)
                self.waiting.release(row)
            self.prompts.remove(reading)
        self._moving = moving

    def _leave(self, row: Row) -> None:
        self.running.leave(row)
        self.waiting.release(row)
