"""``Batch``: continuous batching. Requests join and leave a running model at any step (Yu et al., 2022, Orca).

A step gives the device one token of every row. If a prompt waits, the same pass reads a chunk of it, so that both share
the cost of reading the weights (Agrawal et al., 2024, Sarathi-Serve). Only then does the step read the ids of the step
before. So the device is always one step ahead of the host. A row that has ended may have run one step more; the ids of
that step are dropped.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from core.batching.admission import Admission
from core.batching.failure import kept
from core.batching.request import BatchEvent, BatchRequest
from core.batching.row import Row
from core.batching.scheduler import Scheduler
from core.batching.waiting import Waiting
from core.batching.warm import run_every_step
from core.device import check_process, memory_limits, wired_memory
from core.errors import CoreError, UsageError
from core.language_model import LanguageModel
from core.nn import Cache
from core.nn.rows import RowTemplate

if TYPE_CHECKING:
    from core.prompt_cache import PrefixCache

_SHARE = 0.9  # share of the memory that is free when the batch is made; caches may use this much


class Batch:
    """Continuous batching.

    Any thread may call ``submit`` and ``BatchRequest.cancel``. Only one thread at a time may call ``step`` or iterate.

    In float32, a request gets the same greedy ids as from ``LanguageModel.stream``, whatever else is in the batch and
    whenever it joins. Sampled ids are the same too, for the same seed. In shorter floats, sums are taken in another
    order, which may decide a near tie differently. An error of the model or of the device fails the requests of that
    pass, and no other.

    Args:
        model: a ``LanguageModel``, or a ``core.nn.Decoder`` for prompts of ids.
        max_rows: requests that run at a time; others wait, first come, first served.
        max_bytes: memory for caches. Each running request reserves enough for its prompt and ``max_tokens``. None takes
            nine tenths of the device's memory that is free now. Temporary copies of buffers need more, for one block
            at a time.
        prefill_chunk: prompt tokens that go with a decode step, at most. Fewer are taken where that many would make the
            step take more than about two and a half times as long.
        prefill_burst: prompt tokens in one pass while no row decodes. It also holds for the prompts that waited at that
            time, until all of them are read.
        prefix: a prefix cache. Requests continue from earlier prompts in it, and store theirs there.
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
        self._model = model.model if isinstance(model, LanguageModel) else model
        self._cache_settings = {
            "max_kv_tokens": max_kv_tokens,
            "kept_tokens": kept_tokens,
            "kv_bits": kv_bits,
            "kv_group_size": kv_group_size,
        }
        template = RowTemplate(self._model, self._make_cache)
        if max_bytes is None:
            max_bytes = int(_SHARE * max(0, (memory_limits()[0] or 0) - mx.get_active_memory()))
        self._max_bytes = max_bytes
        self._admission = Admission(model, template, max_bytes, bounded=max_kv_tokens is not None)
        waiting = Waiting(max_rows, max_bytes)
        self._scheduler = Scheduler(
            self._model, template, self._make_cache, waiting, prefix, prefill_chunk, prefill_burst
        )
        self._inbox: deque[Row] = deque()  # the only field that other threads write to
        self._wired: contextlib.ExitStack | None = None
        self._unfinished = False  # a step has begun; an interrupt may have stopped it anywhere

    @property
    def pending(self) -> bool:
        """Whether ``step`` still has work: a request has not ended, an event was not returned, or a step is not
        finished."""
        return bool(self._inbox or self._scheduler.pending)

    def submit(self, prompt: Any, **options: Any) -> BatchRequest:
        """Queues a request.

        Args:
            prompt: as for ``LanguageModel.stream``; for a ``Decoder``, ids.
            options: those of ``LanguageModel.stream`` except the options of caches; for a ``Decoder``, ``max_tokens``,
                ``logprobs``, ``eos`` and the fields of ``Sampling``.

        Raises:
            UsageError, TokenizerError, ChatTemplateError: as ``LanguageModel.stream``. UsageError also for a request so
                long that the model's rotary frequencies would depend on its length: a step uses the same for all rows.
            InsufficientMemoryError: its cache would not fit even alone.
        """
        row = self._admission.row(prompt, options)
        self._inbox.append(row)
        return row.request

    def step(self) -> list[BatchEvent]:
        """Runs one step of the engine. Returns its events, which are often those of the step before; none without work.

        An interrupt (Ctrl-C) is raised as usual. The requests whose tokens it lost have then failed; the others go on.
        The next step returns the events.
        """
        self._step()
        return self._scheduler.told.take()

    def __iter__(self) -> Iterator[BatchEvent]:
        """Steps until every request is done. Events that a loop has not reached go to the next loop, or to ``step``."""
        while self.pending:
            if not self._scheduler.told.untold:
                self._step()
            while self._scheduler.told.untold:
                yield self._scheduler.told.take_first()

    def warm(self) -> None:
        """Runs every kind of step once, so that later requests do not wait for a compilation. Meant for servers.

        It runs them in another batch of the same model and settings, so the requests and the prefix cache of this one
        stay as they are. It takes seconds where kernels have to be compiled, and memory for ``max_rows`` prompts of 512
        tokens.

        Raises:
            Exception: an error of the model or of the device. Steps that ``max_bytes`` does not allow are left out.
        """
        settings: dict[str, Any] = {**self._limits, **self._cache_settings}
        batch = Batch(self._model, max_bytes=self._max_bytes, **settings)
        run_every_step(
            batch,
            self._model.vocab_size,
            max_rows=self._limits["max_rows"],
            prefill_chunk=self._limits["prefill_chunk"],
        )

    def close(self) -> None:
        """Cancels every request, and frees all memory."""
        for row in [*self._inbox, *self._scheduler.told.open]:
            row.request.cancel()
        for _ in self:
            pass

    def _make_cache(self, rows: int) -> Cache:
        cache: Cache = self._model.make_cache(rows, **self._cache_settings)
        return cache

    def _step(self) -> None:
        """Runs a whole step. After an error, the requests of this step have failed, and the others are as before."""
        check_process()
        if self._unfinished:  # a second interrupt came before the first one was handled
            self._recover(_interrupted())
        try:
            self._unfinished = True
            self._keep_resident()
            self._scheduler.step(self._inbox)
            self._unfinished = False
        except Exception as error:  # of the model or the device: no row's cache can be trusted any more
            self._recover(kept(error))
            if not self._scheduler.told.untold:
                raise  # it belongs to no request, so no event would report it
        except BaseException:  # an interrupt: the tokens of a step are lost
            self._recover(_interrupted())
            raise
        if self._wired is not None and not self.pending:
            self._wired.close()
            self._wired = None

    def _recover(self, error: Exception) -> None:
        self._scheduler.recover(error)
        self._unfinished = False

    def _keep_resident(self) -> None:
        if self._wired is None and self.pending:
            wired = contextlib.ExitStack()
            self._wired = wired
            wired.enter_context(wired_memory())


def _interrupted() -> CoreError:
    return CoreError("a step of the batch was interrupted, and its tokens lost", hint="Submit the request again.")
