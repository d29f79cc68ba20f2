"""Cached attention computes what attention over the whole sequence computes, however the sequence arrives."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import CacheError
from core.nn import Cache, CacheSpec
from core.nn.span import SPARE
from core.nn.step import StepPlan

from . import definition
from .definition import HEADS, KV_HEADS, Row, last

DIM = 8
SCALE = DIM**-0.5
WINDOWS = (None, 1, 2, 5, 8, 30)


def spec(window: int | None) -> CacheSpec:
    return CacheSpec.full(KV_HEADS, DIM) if window is None else CacheSpec.sliding(window, KV_HEADS, DIM)


def take_step(
    cache: Cache, rows: list[Row], seq: int, counts: list[int] | None, window: int | None, rng: np.random.Generator
) -> None:
    definition.take_step(cache, rows, seq, counts, definition.last(window), rng, dim=DIM, window=window)


@settings(max_examples=40)
@given(
    window=st.sampled_from(WINDOWS),
    chunks=st.lists(st.sampled_from([1, 1, 1, 2, 3, 7, 8, 9, 40, 300]), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_chunking_attends_as_the_definition_says(window: int | None, chunks: list[int], seed: int) -> None:
    cache, rows, rng = Cache([spec(window)]), [Row()], np.random.default_rng(seed)
    for chunk in chunks:
        take_step(cache, rows, chunk, None, window, rng)
    assert cache.length == sum(chunks)


@settings(max_examples=40)
@given(data=st.data(), window=st.sampled_from(WINDOWS), seed=st.integers(0, 2**32 - 1))
def test_rows_of_different_lengths_attend_to_their_own_tokens(
    data: st.DataObject, window: int | None, seed: int
) -> None:
    batch = 3
    cache, rows, rng = Cache([spec(window)], batch), [Row() for _ in range(batch)], np.random.default_rng(seed)
    for _ in range(data.draw(st.integers(1, 8))):
        seq = data.draw(st.sampled_from([1, 1, 4, 9, 35]))
        counts = data.draw(st.none() | st.lists(st.integers(0, seq), min_size=batch, max_size=batch))
        take_step(cache, rows, seq, counts, window, rng)
        assert cache.lengths == [len(row.keys) for row in rows]


@settings(max_examples=40)
@given(data=st.data(), window=st.sampled_from(WINDOWS), seed=st.integers(0, 2**32 - 1))
def test_rewound_tokens_leave_no_trace(data: st.DataObject, window: int | None, seed: int) -> None:
    cache, rows, rng = Cache([spec(window)]), [Row()], np.random.default_rng(seed)
    longest = 0
    for _ in range(data.draw(st.integers(1, 8))):
        take_step(cache, rows, data.draw(st.sampled_from([1, 3, 20])), None, window, rng)
        longest = max(longest, cache.length)
        back = data.draw(st.integers(0, cache.length - max(0, longest - SPARE)))
        cache.rewind(back)
        rows[0].cut(cache.length)
    take_step(cache, rows, 5, None, window, rng)


@pytest.mark.parametrize("window", [8, 64])
def test_memory_is_bounded_by_the_window(window: int) -> None:
    cache, rng = Cache([spec(window)]), np.random.default_rng(0)
    rows = [Row()]
    take_step(cache, rows, 1000, None, window, rng)
    bound = 2 * 4 * KV_HEADS * DIM * (window + SPARE + max(16, min(window, 240)))
    assert cache.nbytes <= bound
    for _ in range(3 * window):
        take_step(cache, rows, 1, None, window, rng)
        assert cache.nbytes <= bound


def test_a_full_cache_grows_rarely() -> None:
    cache, sizes = Cache([spec(None)]), set()
    for _ in range(2000):
        step = StepPlan(1, 1, 1, cache).steps()[0]
        step.attend(*(mx.zeros((1, heads, 1, DIM)) for heads in (HEADS, KV_HEADS, KV_HEADS)), scale=SCALE)
        cache.commit()
        sizes.add(cache.nbytes)
    assert len(sizes) < 10


def test_windowed_attention_over_a_full_cache() -> None:
    cache, rows, rng = Cache([spec(None)]), [Row()], np.random.default_rng(1)
    for chunk in (3, 10, 1, 1, 6):
        take_step(cache, rows, chunk, None, 4, rng)


def test_without_a_cache_the_step_attends_to_itself() -> None:
    rng = np.random.default_rng(2)
    for window in WINDOWS:
        q = rng.standard_normal((1, HEADS, 12, DIM), dtype=np.float32)
        k, v = (rng.standard_normal((1, KV_HEADS, 12, DIM), dtype=np.float32) for _ in range(2))
        step = StepPlan(1, 12, 1).steps()[0]
        out = np.array(step.attend(mx.array(q), mx.array(k), mx.array(v), scale=SCALE, window=window))
        row = Row([k[0, :, t] for t in range(12)], [v[0, :, t] for t in range(12)])
        for t in range(12):
            np.testing.assert_allclose(out[0, :, t], row.attend(q[0, :, t], t, last(window)), atol=2e-6)


def test_a_copy_is_independent() -> None:
    cache, rows, rng = Cache([spec(8)]), [Row()], np.random.default_rng(3)
    take_step(cache, rows, 20, None, 8, rng)
    twin, twin_rows = cache.copy(), [rows[0].copy()]
    take_step(cache, rows, 3, None, 8, rng)
    take_step(twin, twin_rows, 30, None, 8, rng)
    take_step(cache, rows, 1, None, 8, rng)
    assert (cache.length, twin.length) == (24, 50)


def test_rewinding_past_the_window_is_refused_and_changes_nothing() -> None:
    cache, rows, rng = Cache([spec(8)]), [Row()], np.random.default_rng(4)
    take_step(cache, rows, 100, None, 8, rng)
    with pytest.raises(CacheError, match="sliding window has already dropped"):
        cache.rewind(SPARE + 30)
    with pytest.raises(CacheError, match="cannot rewind by 101"):
        cache.rewind(101)
    assert [cache.can_rewind(count) for count in (0, SPARE, SPARE + 30, 101)] == [True, True, False, False]
    take_step(cache, rows, 2, None, 8, rng)


def test_errors_name_what_does_not_fit() -> None:
    cache = Cache([spec(None)], 2)
    with pytest.raises(CacheError, match="disagree on the batch"):
        StepPlan(3, 1, 1, cache)
    with pytest.raises(CacheError, match="belongs to another model"):
        StepPlan(2, 1, 5, cache)
    with pytest.raises(CacheError, match="lengths do not fit"):
        StepPlan(2, 4, 1, cache, [1, 5])
    StepPlan(2, 4, 1, cache, [1, 4])
    with pytest.raises(CacheError, match="failed half-way"):
        StepPlan(2, 4, 1, cache)


def test_a_small_cache_refuses_wide_attention() -> None:
    step = StepPlan(1, 1, 1, Cache([spec(8)])).steps()[0]
    arrays = [mx.zeros((1, heads, 1, DIM)) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    with pytest.raises(CacheError, match="cannot serve attention to all"):
        step.attend(*arrays, scale=1.0)


def test_state_is_replaced_by_each_step_and_can_be_taken_back_once() -> None:
    cache = Cache([CacheSpec.state({"sum": (3,)})], 2)

    def add(value: float, seq: int) -> None:
        step = StepPlan(2, seq, 1, cache).steps()[0]
        assert step.state is not None
        step.state["sum"] = step.state["sum"] + value
        cache.commit()

    add(1, 4)
    add(2, 1)
    assert cache.arrays()[0].tolist() == [[3] * 3] * 2
    with pytest.raises(CacheError, match="only undo the last step"):
        cache.rewind(2)
    cache.rewind(1)
    assert cache.arrays()[0].tolist() == [[1] * 3] * 2
    assert cache.lengths == [4, 4]
    with pytest.raises(CacheError, match="only undo the last step"):
        cache.rewind(1)
    step = StepPlan(2, 1, 1, cache).steps()[0]
    with pytest.raises(CacheError, match="has no state 'other'"):
        step.state["other"] = mx.zeros((2, 3))
    with pytest.raises(CacheError, match="keeps state"):
        step.attend(mx.zeros((2, 1, 1, 3)), mx.zeros((2, 1, 1, 3)), mx.zeros((2, 1, 1, 3)), scale=1.0)


def test_storage_dtype_and_bytes() -> None:
    wanted = CacheSpec.sliding(8, KV_HEADS, DIM, dtype=mx.float16)
    cache = Cache([wanted])
    step = StepPlan(1, 1, 1, cache).steps()[0]
    step.attend(*(mx.ones((1, heads, 1, DIM)) for heads in (HEADS, KV_HEADS, KV_HEADS)), scale=1.0, window=8)
    assert {array.dtype for array in cache.arrays()} == {mx.float16}
    assert wanted.bytes_at(100, mx.float32) == 8 * KV_HEADS * 2 * DIM * 2
    assert CacheSpec.full(KV_HEADS, DIM).bytes_at(100, mx.float32) == 100 * KV_HEADS * 2 * DIM * 4
    assert CacheSpec.state({"a": (2, 3), "b": (5,)}).bytes_at(100, mx.float16) == 11 * 4
