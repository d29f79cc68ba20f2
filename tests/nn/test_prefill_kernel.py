"""What the kernel for several queries is told of a step, when it is asked, and that a cache is the same with it."""

from __future__ import annotations

import contextlib
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core.nn.key_values as key_values
from core.kernels import inference, reference_only
from core.kernels.prefill_attention_reference import _shown, whole
from core.nn import Cache, CacheSettings, CacheSpec
from core.nn.span import Limit, Reach, Span
from core.nn.step import StepPlan
from core.nn.view import View

from .definition import HEADS, KV_HEADS, Row, first_and_last, last, take_step

HAS_CUDA = mx.cuda.is_available() and mx.default_device().type == mx.gpu


@settings(max_examples=80, deadline=None)
@given(
    reach=st.sampled_from([None, 6, 40, Limit(4, 12), Limit(0, 7), Limit(29, 30)]),
    window=st.sampled_from([None, 5, 6]),
    steps=st.lists(st.tuples(st.sampled_from([1, 2, 5, 40, 300]), st.integers(0, 9)), min_size=1, max_size=6),
    batch=st.integers(1, 3),
)
def test_windows_say_what_masks_say(reach: Reach, window: int | None, steps: list[tuple[int, int]], batch: int) -> None:
    span, lengths = Span(reach, batch), [0] * batch
    if isinstance(reach, int):
        window = reach if window is None else min(window, reach)
    for seq, uneven in steps:
        counts = [max(0, seq - uneven * row) for row in range(batch)]
        view = View(lengths, seq, span.extend(lengths, counts, seq), reach, window)
        assert not view._over
        assert view._mask is None
        told = _shown(view.windows, seq, view.last - view.first)
        expected = mx.broadcast_to(view.over(view.last)[:, 0, :, view.first :], told.shape)
        assert mx.array_equal(told, expected)
        mask = view.mask
        assert isinstance(mask, mx.array) == view.masked
        if isinstance(mask, mx.array):
            assert mx.array_equal(mx.broadcast_to(mask if mask.ndim == 2 else mask[:, 0], told.shape), expected)
        lengths = [length + count for length, count in zip(lengths, counts, strict=True)]


class Definition:
    """Computes what the kernel would."""

    calls = 0

    def launched(self, *inputs: mx.array) -> mx.array:
        Definition.calls += 1
        return whole(*inputs).swapaxes(1, 2)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    Definition.calls = 0
    monkeypatch.setattr(key_values, "prefill_attention_kernel", lambda *_: Definition())


@pytest.mark.parametrize(
    ("window", "limit"), [(None, None), (6, None), (40, None), (None, (4, 12)), (None, (1, 30))], ids=str
)
def test_a_cache_is_the_same_with_it(window: int | None, limit: tuple[int, int] | None, kernel: None) -> None:
    """Chunks, rows of different lengths, windows, kept tokens."""
    spec = CacheSpec.full(KV_HEADS, 8) if window is None else CacheSpec.sliding(window, KV_HEADS, 8)
    cache_settings = None if limit is None else CacheSettings(kept_tokens=limit[0], max_kv_tokens=limit[1])
    sees = last(window) if limit is None else first_and_last(*limit)
    cache, rows, rng = Cache([spec], 3, cache_settings), [Row() for _ in range(3)], np.random.default_rng(0)
    steps: list[tuple[int, list[int] | None]] = [(5, None), (70, [70, 3, 41]), (1, None), (9, [0, 9, 1]), (30, None)]
    with inference():
        for seq, counts in steps:
            take_step(cache, rows, seq, counts, sees, rng, window=window, atol=1e-5)
    assert Definition.calls == 4


@pytest.mark.parametrize(
    ("seq", "window", "calls"),
    [(2, None, 1), (1023, None, 1), (1024, None, 0), (1024, 100, 1), (1024, 2000, 0), (1, 5, 0)],
)
def test_when_it_is_asked(seq: int, window: int | None, calls: int, kernel: None) -> None:
    spec = CacheSpec.full(1, 8) if window is None else CacheSpec.sliding(window, 1, 8)
    x = mx.zeros((1, 1, seq, 8))
    for asked, context in ((calls, inference()), (calls, contextlib.nullcontext())):
        cache = Cache([spec])
        with context:  # the second is no inference, and asks no more
            StepPlan(1, seq, 1, cache).steps()[0].attend(x, x, x, scale=8**-0.5, window=window)
        assert Definition.calls == asked


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("window", "changes"), [(None, {}), (100, {}), (None, {"max_kv_tokens": 150, "kept_tokens": 20})], ids=str
)
def test_on_a_device(head_dim: int, window: int | None, changes: dict[str, Any]) -> None:
    spec = CacheSpec.full(KV_HEADS, head_dim) if window is None else CacheSpec.sliding(window, KV_HEADS, head_dim)
    caches = [Cache([spec], 2, CacheSettings(**changes)) for _ in range(2)]
    steps: list[tuple[int, list[int] | None]] = [(300, None), (90, [90, 31]), (1, None), (17, [5, 17]), (600, None)]
    for seed, (seq, counts) in enumerate(steps):
        keys = mx.random.split(mx.random.key(seed), 3)
        shapes = [(2, seq, heads, head_dim) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        arrays = [
            mx.random.normal(shape, key=key).astype(mx.bfloat16).swapaxes(1, 2)
            for shape, key in zip(shapes, keys, strict=True)
        ]
        found = []
        for cache, context in zip(caches, (inference(), reference_only()), strict=True):
            step = StepPlan(2, seq, 1, cache, counts).steps()[0]
            with context:
                found.append(step.attend(*arrays, scale=head_dim**-0.5, window=window))
            cache.commit()
        for row in range(2):
            real = seq if counts is None else counts[row]
            difference = mx.abs(found[0][row, :, :real] - found[1][row, :, :real])
            assert mx.max(difference).item() < 3e-2
