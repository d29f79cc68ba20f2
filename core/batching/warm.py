"""Runs every kind of step of a batch once, so that its kernels are compiled before the first request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from core.batching.request import BatchEvent, BatchRequest
from core.errors import InsufficientMemoryError, UsageError

_TILE = 8
"""Products of up to this many rows have a kernel of their own; then twice as many, and so on
(``core.kernels.few_rows``)."""
_SHORT, _LONG = 24, 512
"""Tokens of prompts: few enough for a kernel for few rows, and too many for it."""
_STEPS = 6


class _Batch(Protocol):
    def submit(self, prompt: list[int], **options: object) -> BatchRequest: ...

    def step(self) -> Sequence[BatchEvent]: ...

    @property
    def pending(self) -> bool: ...


def run_every_step(batch: _Batch, vocab_size: int, max_rows: int, prefill_chunk: int) -> None:
    """Decodes with every number of rows that has kernels of its own, and reads prompts alone and with decoding rows.

    Args:
        batch: without requests. Steps that do not fit its memory, or the model's limits, are left out.
        vocab_size: of the model.
        max_rows, prefill_chunk: of the batch.

    Raises:
        Exception: an error of a step; users' requests would meet it as well.
    """
    for rows in _row_counts(max_rows):
        _submit(batch, [_SHORT] * rows, vocab_size)
        _run(batch)
    _submit(batch, [_LONG], vocab_size)
    _run(batch)
    # A crowd; and while it decodes, prompts of one chunk and of several.
    _submit(batch, [_LONG] * max_rows, vocab_size, max_tokens=4 * _STEPS)
    for joining in (_SHORT, _LONG, 2 * prefill_chunk + 1):
        for _ in range(_STEPS):
            _step(batch)
        _submit(batch, [joining], vocab_size)
    _run(batch)


def _row_counts(max_rows: int) -> list[int]:
    counts = [1]
    while counts[-1] < max_rows:
        counts.append(min(max_rows, 2 * counts[-1] if counts[-1] >= _TILE else _TILE))
    return counts


def _submit(batch: _Batch, lengths: Iterable[int], vocab_size: int, max_tokens: int = _STEPS) -> None:
    for place, length in enumerate(lengths):
        prompt = [(7919 * (place + 1) + 31 * i) % vocab_size for i in range(length)]
        sampling = {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "seed": 0} if place % 2 else {"temperature": 0.0}
        try:
            batch.submit(prompt, max_tokens=max_tokens, **sampling)
        except (InsufficientMemoryError, UsageError):  # too long: the ids and the settings are right
            continue


def _run(batch: _Batch) -> None:
    while batch.pending:
        _step(batch)


def _step(batch: _Batch) -> None:
    for event in batch.step():
        if event.error is not None and not isinstance(event.error, InsufficientMemoryError):
            raise event.error
