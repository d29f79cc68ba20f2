"""Prompts are read in beside those who decode: in chunks, in time, and many at once where nobody waits."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

import core
from core.batching import scheduler
from core.batching.pace import Pace
from core.nn.groups import CacheGroups
from tests.batching.models import check_alone, model, prompt


class Counting:
    """A model that notes the shape of the tokens for each cache in each call."""

    vocab_size = model("full").vocab_size
    make_cache = staticmethod(model("full").make_cache)
    head = staticmethod(model("full").head)

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.passes = 0

    def modules(self) -> list[object]:
        return []

    def hidden_states(self, tokens: mx.array, cache: Any = None, lengths: Any = None) -> mx.array:
        self.passes += 1
        if isinstance(cache, CacheGroups):
            assert tokens.shape[1] == 1
            self.calls += [(each.batch, seq) for each, seq in zip(cache.caches, cache.seqs, strict=True)]
            assert tokens.shape[0] == sum(rows * seq for rows, seq in self.calls[-len(cache.caches) :])
        else:
            self.calls.append(tuple(tokens.shape))
        return model("full").hidden_states(tokens, cache, lengths)


def test_a_long_prompt_stalls_nobody() -> None:
    """Between two tokens of those who run lies one chunk, at most; each step gives each of them one token.

    Weights are read once a step, chunk or no chunk.
    """
    counting = Counting()
    batch = core.Batch(counting, max_rows=5, prefill_chunk=32)
    runs = [batch.submit(prompt(i, 5), max_tokens=200) for i in range(3)]
    for _ in range(4):
        batch.step()
    late = batch.submit(prompt(4, 500), max_tokens=3)
    short = None
    steps = 0
    while not late.done:
        counting.calls.clear()
        counting.passes = 0
        events = batch.step()
        assert counting.passes == 1
        told = [event.request for event in events if event.chunk is not None and event.chunk.token_id is not None]
        assert all(request in told for request in runs)
        assert sum(rows * tokens for rows, tokens in counting.calls if tokens > 1) <= 32
        steps += 1
        if steps == 8:
            short = batch.submit(prompt(3, 20), max_tokens=2)
    assert steps >= 500 // 32
    assert short is not None
    assert short.done, "a short prompt is read between two chunks of the long one"
    for request in runs:
        request.cancel()
    list(batch)
    for request in (*runs, late, short):
        check_alone("full", request)


def test_the_buffers_of_a_long_prompt_come_little_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those who decode get a token in each of these steps, too."""
    counting = Counting()
    batch = core.Batch(counting, max_rows=3, prefill_chunk=64)
    runs = batch.submit(prompt(1, 5), max_tokens=60)
    for _ in range(3):
        batch.step()
    monkeypatch.setattr(scheduler, "_ALLOCATED", 1)
    late = batch.submit(prompt(4, 300), max_tokens=3)
    buffers = len(model("full").layers) * 2
    for _ in range(buffers):
        counting.calls.clear()
        assert any(event.request is runs for event in batch.step())
        assert counting.calls == [(1, 1)]
    batch.step()
    assert counting.calls[-1][1] > 1
    list(batch)
    for request in (runs, late):
        check_alone("full", request)


@pytest.mark.parametrize("allocated", [1, 1 << 29])
def test_a_crowd_is_read_at_once(monkeypatch: pytest.MonkeyPatch, allocated: int) -> None:
    monkeypatch.setattr(scheduler, "_ALLOCATED", allocated)
    counting = Counting()
    batch = core.Batch(counting, max_rows=32, prefill_chunk=16, prefill_burst=256)
    requests = [batch.submit(prompt(i % 7, 33), max_tokens=8) for i in range(32)]
    counting.calls.clear()
    while batch._scheduler.waiting or batch._inbox:
        batch.step()
    read = [shape for shape in counting.calls if shape[1] > 1]
    assert read == [(8, 32)] * 4
    list(batch)
    for request in requests:
        check_alone("full", request)


def test_prompts_of_very_different_lengths_are_not_padded_to_one() -> None:
    counting = Counting()
    batch = core.Batch(counting, max_rows=8, prefill_burst=4096)
    lengths = [4, 5, 300, 310, 3]
    for i, length in enumerate(lengths):
        batch.submit(prompt(i, length), max_tokens=4)
    counting.calls.clear()
    while batch._scheduler.waiting or batch._inbox:
        batch.step()
    padded = sum(rows * tokens for rows, tokens in counting.calls if rows > 1 or tokens > 8)
    assert padded <= 2 * sum(lengths)
    batch.close()


@pytest.mark.parametrize(
    ("step", "fixed", "token", "expected"),
    [
        (8.0, 0.0, 0.03, 256),
        (1.0, 0.0, 0.03, 32),
        (8.0, 0.0, 0.5, 16),
        (5.0, 0.0, 0.0, 512),
        (2.0, 2.0, 0.001, 512),
        (8.0, 4.0, 0.01, 512),
        (2.0, 5.0, 0.001, 512),
        (8.0, 0.0, 2.0, 16),
    ],
)
def test_the_pace_finds_the_largest_chunk_that_fits(step: float, fixed: float, token: float, expected: int) -> None:
    """A device that takes ``step`` ms for a decode step, ``fixed`` more with a chunk and ``token`` for each of it."""
    pace = Pace(512, least=16)
    for _ in range(5):
        pace.record(step, 0)
    took = []
    for number in range(60):
        chunk = pace.chunk
        took.append(step + fixed + token * chunk)
        pace.record(took[-1] + (1000 if number in (2, 20) else 0), chunk)  # something compiles
    assert pace.chunk == expected
    too_long = [seconds for seconds in took if seconds > max(3 * step, 1.3 * (step + fixed + token * 16))]
    assert len(too_long) <= 3, "what stalls the others is tried, and not again"
    if token < 0.1:
        assert not too_long


def test_the_pace_slows_down_when_chunks_get_dear() -> None:
    pace = Pace(512, least=16)
    for _ in range(5):
        pace.record(8.0, 0)
    for depth in range(400):
        took = 8.0 + pace.chunk * (0.01 + depth * 0.0005)
        assert took < 3 * 8.0
        pace.record(took, pace.chunk)
