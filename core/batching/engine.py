"""``Batch``: many requests on one model, which join and leave at any step (continuous batching; Yu et al., 2022, Orca).

A step of the engine gives the device one token of every row, and in the same pass a chunk of a prompt, if any waits, so
that both share what it costs to read the weights (Agrawal et al., 2024, Sarathi-Serve); only then does it read the ids
of the step before. So the device is always one step ahead of the host, and a row that has ended may have run one step
more, which nobody sees.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from core.batching.answer import TimedAnswer
from core.batching.failure import kept
from core.batching.flight import Flight
from core.batching.groups import capacity_class
from core.batching.options import wanted
from core.batching.pace import Pace
from core.batching.prefill import Chunk, Reading
from core.batching.prefixes import Prefixes
from core.batching.prompts import Prompts
from core.batching.request import BatchEvent, BatchRequest
from core.batching.row import Row
from core.batching.running import Running
from core.batching.told import Told
from core.batching.waiting import Waiting
from core.batching.warm import run_every_step
from core.device import check_process, explained, memory_limits, wired_memory
from core.errors import CoreError, InsufficientMemoryError, ProcessorError, UsageError
from core.language_model import LanguageModel
from core.nn import Cache, rotation_limit
from core.nn.rows import RowTemplate

if TYPE_CHECKING:
    from core.prompt_cache import PrefixCache

_ALLOCATED = 1 << 29  # bytes of a long prompt's cache in one step, about: a GPU takes a millisecond
_SHARE = 0.9  # of the memory that is free when the batch is made, for caches


class Batch:
    """Continuous batching.

    ``submit`` and ``BatchRequest.cancel`` may be called by any thread; ``step``, and iterating, by one at a time.

    Greedy ids of a request in float32 are those of ``LanguageModel.stream``, whatever else is in the batch and whenever
    it joins; so are sampled ones, by their seed. In shorter floats, sums of another order may decide a near tie. An
    error of the model or of the device fails the requests that were in that pass, and no other.

    Args:
        model: a ``LanguageModel``, or a ``core.nn.Decoder`` for prompts of ids.
        max_rows: requests that run at a time; others wait, first come, first served.
        max_bytes: of the caches, reserved for prompt and ``max_tokens`` of each request that runs; None takes nine
            tenths of the device's memory that is free now. Buffers that are copied come on top, one block's at a time.
        prefill_chunk: prompt tokens that go with a decode step, at most. Fewer are taken where they make it take more
            than about two and a half times as long.
        prefill_burst: prompt tokens at once while nothing decodes, and for the prompts that waited then until all of
            them are read.
        prefix: what earlier prompts have left; requests continue from it, and leave theirs there.
        max_kv_tokens, kept_tokens, kv_bits, kv_group_size: as for ``Decoder.make_cache``.

    Raises:
        UsageError: a setting out of range.
        CacheError: ``prefix`` belongs to another model or other settings.
    """

    def __init__(
        self,
        model: LanguageModel | Any,
        *,
        max_rows: int = 32,
        max_bytes: int | None = None,
        prefill_chunk: int = 512,
        prefill_burst: int = 4096,
        prefix: PrefixCache | None = None,
        max_kv_tokens: int | None = None,
        kept_tokens: int = 4,
        kv_bits: int | None = None,
        kv_group_size: int = 64,
    ) -> None:
        self._limits = {"max_rows": max_rows, "prefill_chunk": prefill_chunk, "prefill_burst": prefill_burst}
        for name, value in self._limits.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} is out of range", expected="an integer, 1 or more", found=repr(value))
        self._source = model
        self._model = model.model if isinstance(model, LanguageModel) else model
        self._rotation_limit = rotation_limit(self._model)
        self._cache_settings = {
            "max_kv_tokens": max_kv_tokens,
            "kept_tokens": kept_tokens,
            "kv_bits": kv_bits,
            "kv_group_size": kv_group_size,
        }
        self._template = RowTemplate(self._model, self._make_cache)
        if max_bytes is None:
            max_bytes = int(_SHARE * max(0, (memory_limits()[0] or 0) - mx.get_active_memory()))
        self._waiting = Waiting(max_rows, max_bytes)
        self._pace = Pace(prefill_chunk)
        self._prefixes = Prefixes(prefix, self._make_cache)
        self._prompts = Prompts(self._waiting, self._prefixes, self._template.make, self._pace, prefill_burst)
        self._running = Running(self._model, self._template, self._make_cache)
        self._flight: Flight | None = None
        self._told = Told(self._pace)
        self._inbox: deque[Row] = deque()  # the one thing that other threads write to
        self._numbers = itertools.count()
        self._wired: contextlib.ExitStack | None = None
        # What an interrupt would leave half-way: a step, the prompts that it reads, the rows that decode.
        self._unfinished = False
        self._reading: Reading | None = None
        self._moving = False

    @property
    def pending(self) -> bool:
        """Requests have been submitted whose last event no step has returned, or a step has still to tidy up."""
        return bool(self._inbox or self._told or self._prompts.rows or self._running.rows or self._flight)

    def submit(self, prompt: Any, **options: Any) -> BatchRequest:
        """Queues a request.

        Args:
            prompt: as for ``LanguageModel.stream``; for a ``Decoder``, ids.
            options: those of ``LanguageModel.stream`` but for the caches'; for a ``Decoder``, ``max_tokens``,
                ``logprobs``, ``eos`` and the fields of ``Sampling``.

        Raises:
            UsageError, TokenizerError, ChatTemplateError: as ``LanguageModel.stream``; UsageError also for a request so
                long that the model's rotary frequencies would depend on its length: a step gives all rows the same.
            InsufficientMemoryError: its cache would not fit even alone.
        """
        asked = wanted(self._source, prompt, options, bounded=self._cache_settings["max_kv_tokens"] is not None)
        total = len(asked.prompt_ids) + asked.max_tokens
        if self._rotation_limit is not None and total > self._rotation_limit:
            raise UsageError(
                "the rotary frequencies of this model depend on the length of long sequences, which differs in a batch",
                expected=f"at most {self._rotation_limit:,} tokens, prompt and max_tokens together",
                found=f"{total:,}",
                hint="Ask for fewer max_tokens, or generate this request by itself.",
            )
        nbytes = self._template.row_bytes(capacity_class(total) if self._template.grows else 0)
        if nbytes > self._waiting.max_bytes:
            raise InsufficientMemoryError(
                "the request's cache would not fit, even alone",
                expected=f"at most {self._waiting.max_bytes:,} bytes",
                found=f"{nbytes:,} for {total:,} tokens",
                hint="Ask for fewer max_tokens, or give the batch more max_bytes.",
            )
        request = BatchRequest(next(self._numbers), asked.prompt_ids, asked.max_tokens, asked.sampling)
        self._inbox.append(Row(request, TimedAnswer(asked), nbytes, asked.logprobs, asked.eos))
        return request

    def step(self) -> list[BatchEvent]:
        """One step of the engine; returns what it found out, often about the step before. Without work, it is empty.

        An interrupt (Ctrl-C) goes through; the requests whose step it was have then failed, the others go on. The next
        step returns the events.
        """
        self._step()
        return self._told.take()

    def __iter__(self) -> Iterator[BatchEvent]:
        """Steps until every request is done. Events that a loop has not come to are given by the next loop, or step."""
        while self.pending:
            if not self._told.untold:
                self._step()
            while self._told.untold:
                yield self._told.take_first()

    def warm(self) -> None:
        """Runs every kind of step once, so that no request waits for a compilation afterwards; for servers.

        Another batch of the same model and settings does it: the requests and the prefix cache of this one are left
        alone. It takes seconds where kernels have to be compiled, and memory for ``max_rows`` prompts of 512 tokens.
        """
        settings: dict[str, Any] = {**self._limits, **self._cache_settings}
        batch = Batch(self._model, max_bytes=self._waiting.max_bytes, **settings)
        run_every_step(
            batch,
            self._model.vocab_size,
            max_rows=self._limits["max_rows"],
            prefill_chunk=self._limits["prefill_chunk"],
        )

    def close(self) -> None:
        """Cancels every request, and lets go of all memory."""
        for row in [*self._inbox, *self._told.open]:
            row.request.cancel()
        for _ in self:
            pass

    def _make_cache(self, rows: int) -> Cache:
        cache: Cache = self._model.make_cache(rows, **self._cache_settings)
        return cache

    def _step(self) -> None:
        """A step, whole; or what it touched has failed, and all else is as before."""
        check_process()
        if self._unfinished:  # another interrupt has come before the last one was dealt with
            self._recover(_interrupted())
        try:
            self._unfinished = True
            self._keep_resident()
            with explained():
                self._let_in_and_out()
                self._decode(*self._turn())
            self._reading = None
            self._unfinished = False
        except Exception as error:  # of the model or the device: no row's cache can be trusted any more
            self._recover(kept(error))
            if not self._told.untold:
                raise  # it is no request's, so that nobody else would tell of it
        except BaseException:  # an interrupt: the tokens of a step are lost
            self._recover(_interrupted())
            raise
        if self._wired is not None and not self.pending:
            self._wired.close()
            self._wired = None

    def _recover(self, error: Exception) -> None:
        """Fails the requests that an unfinished step has left half-way. Whoever interrupts it leaves it to be repeated.

        The open requests say what must be; queue, reservations and prompts are made anew from them.
        """
        self._told.settle()
        if self._moving:
            self._running = Running(self._model, self._template, self._make_cache)
            self._flight = None
        self._prompts.restore(self._reading)
        whole = {*self._running.rows, *self._prompts.rows, *(self._flight.rows if self._flight is not None else ())}
        for row in self._told.open:
            if row.started and row not in whole:
                self._told.fail(row, error)
            elif not row.started:
                row.sought = row.found is not None  # what was found went with the prompts that did not begin
        queue = [row for row in self._told.open if not row.started]
        self._waiting.restore(queue, holding=[*self._prompts.rows, *self._running.rows])
        self._reading, self._moving = None, False
        self._unfinished = False

    def _keep_resident(self) -> None:
        if self._wired is None and self.pending:
            wired = contextlib.ExitStack()
            self._wired = wired
            wired.enter_context(wired_memory())

    def _let_in_and_out(self) -> None:
        """Queues what was submitted, and lets go of what has ended, or will end with the step that is being run."""
        while self._inbox:
            row = self._inbox[0]
            if self._told.expect(row):
                self._waiting.add(row)
            self._inbox.popleft()
        for row in self._waiting.over():
            self._told.end(row, "cancelled" if row.request.max_tokens else "length")
            self._waiting.remove(row)
        for reading in self._prompts.cancelled():
            for row in reading.rows:
                self._told.end(row, "cancelled")
                self._waiting.release(row)
            self._prompts.remove(reading)
        for row in list(self._running.rows):
            if row.request.cancelled and not row.request.done:
                self._told.end(row, "cancelled")
            if row.request.done or row.submitted >= row.request.max_tokens:
                tokens = len(row.request.prompt_ids) - 1 + row.submitted
                try:
                    self._prefixes.take(row, self._running.groups, self._template.row_bytes(tokens))
                except Exception as error:  # no memory for a copy: what is left out of the cache harms nobody
                    kept(error)
                self._moving = True
                self._leave(row)
                self._moving = False

    def _turn(self) -> tuple[Chunk | None, int | None]:
        """What of the prompts comes next: a chunk for the next pass; or a pass of its own, and how many tokens that is.

        None instead of a number says that the step will take longer for another reason.
        """
        decoding = bool(self._running.rows)
        reading, budget = self._prompts.turn(decoding)
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
                # While rows decode, reading their last ids has waited for the chunk before the last one.
                tokens = reading.read(self._model, budget, wait=not decoding)
                self._join(reading)
                turn = None, tokens
        return turn

    def _join(self, reading: Reading) -> None:
        """Lets prompts that are read decode."""
        if reading.left == 0:
            self._moving = True
            self._running.join(reading.rows, reading.cache)
            self._prompts.remove(reading)

    def _decode(self, chunk: Chunk | None, prompt_tokens: int | None) -> None:
        """Gives the device the next step, and only then reads the last one's tokens."""
        if chunk is None:
            self._reading = None
        self._moving = True
        previous = self._flight
        self._flight = self._fly(previous, chunk, prompt_tokens)
        self._prefixes.store()
        if previous is not None:
            self._told.tokens(previous, more=self._flight is not None)
        self._moving = False

    def _fly(self, previous: Flight | None, chunk: Chunk | None, prompt_tokens: int | None) -> Flight | None:
        """Gives the device the next token of every row, and a chunk of the prompts beside them."""
        if not self._running.rows:
            self._running.groups.settle()  # caches that nobody needs go now
            return None
        logits = self._running.logits(None if previous is None else previous.choice.ids, chunk)
        if chunk is not None:
            prompt_tokens = chunk.reading.took(chunk)
        flight = None
        while self._running.rows:
            try:
                choice = self._running.choose(logits)
            except ProcessorError as error:  # one row's own; nothing was recorded of the others
                row = self._running.rows[error.row]
                self._leave(row)
                self._told.fail(row, kept(error))
                continue
            mx.async_eval(choice.arrays())
            flight = Flight(choice, list(self._running.rows), prompt_tokens)
            break
        if chunk is not None:
            with self._failing_only(chunk.reading):
                self._join(chunk.reading)
        return flight

    @contextlib.contextmanager
    def _failing_only(self, reading: Reading) -> Iterator[None]:
        """An error within fails these prompts, and nobody else."""
        moving = self._moving
        try:
            with explained():
                yield
        except Exception as error:
            failure = kept(error)
            for row in reading.rows:
                self._told.fail(row, failure)
                self._waiting.release(row)
            self._prompts.remove(reading)
        self._moving = moving

    def _leave(self, row: Row) -> None:
        self._running.leave(row)
        self._waiting.release(row)


def _interrupted() -> CoreError:
    return CoreError("a step of the batch was interrupted, and its tokens lost", hint="Submit the request again.")
