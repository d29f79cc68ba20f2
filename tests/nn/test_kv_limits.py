"""``max_kv_tokens``: which tokens a query sees, against the rule written down, however the sequence arrives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import CacheError, UsageError
from core.nn import Cache, CacheSettings, CacheSpec
from core.nn.span import SPARE

from .definition import KV_HEADS, Row, first_and_last, last, take_step

DIM = 8
LIMITS = [(0, 1), (0, 7), (4, 5), (4, 12), (1, 30), (29, 30)]  # kept, tokens
FULL = CacheSpec.full(KV_HEADS, DIM)


def limited(kept: int, tokens: int, batch: int = 1, spec: CacheSpec = FULL) -> Cache:
    return Cache([spec], batch, CacheSettings(max_kv_tokens=tokens, kept_tokens=kept))


@settings(max_examples=30)
@given(
    limit=st.sampled_from(LIMITS),
    chunks=st.lists(st.sampled_from([1, 1, 1, 2, 3, 7, 13, 40, 300]), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_chunking_sees_the_first_and_the_last(limit: tuple[int, int], chunks: list[int], seed: int) -> None:
    cache, rows, rng = limited(*limit), [Row()], np.random.default_rng(seed)
    for chunk in chunks:
        take_step(cache, rows, chunk, None, first_and_last(*limit), rng)


def test_one_token_at_a_time_far_past_the_limit() -> None:
    cache, rows, rng = limited(4, 12), [Row()], np.random.default_rng(0)
    for _ in range(150):
        take_step(cache, rows, 1, None, first_and_last(4, 12), rng)


@settings(max_examples=30)
@given(data=st.data(), limit=st.sampled_from(LIMITS), seed=st.integers(0, 2**32 - 1))
def test_rows_of_different_lengths(data: st.DataObject, limit: tuple[int, int], seed: int) -> None:
    batch = 3
    cache, rows = limited(*limit, batch), [Row() for _ in range(batch)]
    rng = np.random.default_rng(seed)
    for _ in range(data.draw(st.integers(1, 8))):
        seq = data.draw(st.sampled_from([1, 1, 4, 9, 35, 120]))
        counts = data.draw(st.none() | st.lists(st.integers(0, seq), min_size=batch, max_size=batch))
        take_step(cache, rows, seq, counts, first_and_last(*limit), rng)


@settings(max_examples=30)
@given(data=st.data(), limit=st.sampled_from(LIMITS), seed=st.integers(0, 2**32 - 1))
def test_rewound_tokens_leave_no_trace(data: st.DataObject, limit: tuple[int, int], seed: int) -> None:
    cache, rows, rng = limited(*limit), [Row()], np.random.default_rng(seed)
    longest = 0
    for _ in range(data.draw(st.integers(1, 8))):
        take_step(cache, rows, data.draw(st.sampled_from([1, 3, 20, 60])), None, first_and_last(*limit), rng)
        longest = max(longest, cache.length)
        cache.trim(data.draw(st.integers(max(0, longest - SPARE), cache.length)))
        rows[0].cut(cache.length)
    take_step(cache, rows, 5, None, first_and_last(*limit), rng)


@pytest.mark.parametrize(
    ("window", "tokens", "sees"),
    [
        (8, 20, last(8)),
        (20, 20, last(20)),
        (21, 20, first_and_last(4, 20)),
        (64, 20, first_and_last(4, 20)),
    ],
)
@pytest.mark.parametrize("slides", [True, False], ids=["window cache", "full cache"])
def test_of_a_window_and_a_limit_the_smaller_holds(window: int, tokens: int, sees, slides: bool) -> None:
    spec = CacheSpec.sliding(window, KV_HEADS, DIM) if slides else FULL
    cache, rows, rng = limited(4, tokens, spec=spec), [Row()], np.random.default_rng(1)
    for chunk in (5, 30, 1, 1, 100, *[1] * 40, 6):
        take_step(cache, rows, chunk, None, sees, rng, window=window)


def test_memory_is_bounded_by_the_limit() -> None:
    kept, tokens = 4, 40
    cache, rows, rng = limited(kept, tokens), [Row()], np.random.default_rng(0)
    bound = 2 * 4 * KV_HEADS * DIM * (kept + tokens + SPARE + tokens)
    take_step(cache, rows, 700, None, first_and_last(kept, tokens), rng)
    assert cache.nbytes <= bound
    for _ in range(150):
        take_step(cache, rows, 1, None, first_and_last(kept, tokens), rng)
        assert cache.nbytes <= bound


def test_a_rewind_past_the_limit_is_refused_and_changes_nothing() -> None:
    cache, rows, rng = limited(4, 12), [Row()], np.random.default_rng(4)
    take_step(cache, rows, 100, None, first_and_last(4, 12), rng)
    assert cache.can_rewind(SPARE)
    assert not cache.can_rewind(60)
    with pytest.raises(CacheError, match="max_kv_tokens has already dropped"):
        cache.rewind(60)
    take_step(cache, rows, 2, None, first_and_last(4, 12), rng)


@pytest.mark.parametrize("window", [None, 12], ids=["limit", "window"])
@pytest.mark.parametrize("ahead", [0, 10, 30])
def test_as_far_back_as_it_can(window: int | None, ahead: int) -> None:
    spec, sees = (FULL, first_and_last(4, 12)) if window is None else (CacheSpec.sliding(12, KV_HEADS, DIM), last(12))
    cache, rows, rng = Cache([spec], 1, CacheSettings(max_kv_tokens=12)), [Row()], np.random.default_rng(8)
    take_step(cache, rows, 100, None, sees, rng, window=window)
    for _ in range(ahead):
        take_step(cache, rows, 1, None, sees, rng, window=window)
    back = max(count for count in range(cache.length) if cache.can_rewind(count))
    assert SPARE <= back < 60
    cache.rewind(back)
    rows[0].cut(cache.length)
    take_step(cache, rows, 1, None, sees, rng, window=window)


def test_a_copy_is_independent() -> None:
    cache, rows, rng = limited(4, 12), [Row()], np.random.default_rng(3)
    take_step(cache, rows, 50, None, first_and_last(4, 12), rng)
    twin, twin_rows = cache.copy(), [rows[0].copy()]
    take_step(cache, rows, 3, None, first_and_last(4, 12), rng)
    take_step(twin, twin_rows, 30, None, first_and_last(4, 12), rng)
    take_step(cache, rows, 1, None, first_and_last(4, 12), rng)


def test_the_mask_is_left_out_where_nothing_is_hidden() -> None:
    from core.nn.view import View

    cache = limited(4, 12)
    reach = next(iter(cache.spans))

    def mask(starts: int, seq: int):
        return View([starts], seq, cache.spans[reach].extend([starts], [seq], seq), reach, None).mask

    assert mask(0, 1) is None
    assert mask(11, 1) is None
    assert mask(0, 12) == "causal"
    assert mask(12, 1) is not None
    assert mask(0, 13) != "causal"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"max_kv_tokens": 4}, r"max_kv_tokens leaves no room.*more than kept_tokens, 4, found 4"),
        ({"max_kv_tokens": 0, "kept_tokens": 0}, "max_kv_tokens leaves no room"),
        ({"kept_tokens": -1}, "kept_tokens must not be negative"),
        ({"kv_bits": 3}, "kv_bits is not supported"),
        ({"kv_bits": 4, "kv_group_size": 48}, "kv_group_size is not supported"),
    ],
)
def test_settings_out_of_range(changes: dict[str, int], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        CacheSettings(**changes)


def test_a_state_ignores_every_setting() -> None:
    asked = CacheSettings(max_kv_tokens=5, kv_bits=4)
    cache = Cache([CacheSpec.state({"sum": (3,)})], 2, asked)
    assert [array.shape for array in cache.arrays()] == [(2, 3)]
    assert cache.spans == {}


@pytest.mark.parametrize("settings", [{"max_kv_tokens": 20.5}, {"kept_tokens": "4"}, {"kv_bits": "8"}])
def test_settings_are_integers(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(settings))} must be an integer"):
        CacheSettings(**settings)
