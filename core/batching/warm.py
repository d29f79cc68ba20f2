"""Runs every kind of step of a batch once, so that their kernels are compiled before there are requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from core.batching.request import BatchEvent, BatchRequest
from core.errors import InsufficientMemoryError, UsageError

_TILE = 8
"""Rows for which a product has a kernel of its own, then twice as many, and so on (``core.kernels.few_rows``)."""
_SHORT, _LONG = 24, 512
"""Tokens of prompts: fewer than a kernel for few rows takes, and more."""
_STEPS = 6


class _Batch(Protocol):
    def submit(self, prompt: list[int], **options: object) -> BatchRequest: ...

    def step(self) -> Sequence[BatchEvent]: ...

    @property
    def pending(self) -> bool: ...


def run_every_step(batch: _Batch, vocab_size: int, max_rows: int, prefill_chunk: int) -> None:
    """Decodes with every number of rows that has kernels of its own, and reads prompts alone and beside rows.

    Args:
        batch: without requests; those that do not fit its memory, or the model's limits, are left out.
        max_rows, prefill_chunk: of the batch.

    Raises:
        Exception: what a step met; it would fail the users' requests as well.
    """
    for rows in _row_counts(max_rows):
        _submit(batch, [_SHORT] * rows, vocab_size)
        _run(batch)
    _submit(batch, [_LONG], vocab_size)
    _run(batch)
    # A crowd, and while it decodes prompts of one chunk and of several.
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
