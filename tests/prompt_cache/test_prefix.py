"""A prompt that begins as an earlier one goes on from its cache: exactly, bounded, and with nothing shared."""

from __future__ import annotations

import threading

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core
from core.errors import CacheError, UsageError
from core.nn.span import SPARE
from core.prompt_cache.snapshot import snapshot

from . import kinds
from .kinds import ATOL, KINDS, ON_CPU, assert_holds, empty, feed, processed, scribble

PROMPT = [int(x) for x in np.random.default_rng(0).integers(0, 64, 90)]
LARGE = 1 << 30
DROPS = ("window", "limit", "packed limit", "beside")


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_goes_on(kind: str) -> None:
    prefix = core.PrefixCache(LARGE)
    assert prefix.store(PROMPT, processed(kind, PROMPT))
    cache, reused = prefix.fetch([*PROMPT, 7, 7, 7], empty(kind))
    assert reused == len(PROMPT)
    assert_holds(kind, cache, PROMPT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_departs_is_reused_where_that_is_exact(kind: str) -> None:
    prefix = core.PrefixCache(LARGE)
    prefix.store(PROMPT, processed(kind, PROMPT))
    for common in (len(PROMPT) - 3, 40):
        ids = [*PROMPT[:common], (PROMPT[common] + 1) % 64, 3]
        cache, reused = prefix.fetch(ids, empty(kind))
        usable = kind != "state" and (kind not in DROPS or common >= len(PROMPT) - SPARE)
        assert reused == (common if usable else 0)
        assert_holds(kind, cache, ids[:reused])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_prompt_leaves_one_token_to_process(kind: str) -> None:
    prefix = core.PrefixCache(LARGE)
    prefix.store(PROMPT, processed(kind, PROMPT))
    cache, reused = prefix.fetch(PROMPT, empty(kind))
    assert reused == (0 if kind == "state" else len(PROMPT) - 1)
    np.testing.assert_allclose(
        feed(kind, cache, PROMPT[reused:]), feed(kind, empty(kind), PROMPT), atol=ATOL, rtol=1e-5
    )
    cache, reused = prefix.fetch(PROMPT[:1], empty(kind))
    assert (cache.length, reused) == (0, 0)


@settings(max_examples=30)
@given(data=st.data(), kind=st.sampled_from(list(KINDS)))
def test_whatever_was_stored_the_answer_is_a_fresh_caches(data: st.DataObject, kind: str) -> None:
    prefix = core.PrefixCache(data.draw(st.sampled_from([LARGE, 60_000])))
    for _ in range(data.draw(st.integers(1, 5))):
        shared, own = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 30))
        ids = [*PROMPT[:shared], *data.draw(st.lists(st.integers(0, 3), min_size=own, max_size=own))]
        cache, reused = prefix.fetch(ids, empty(kind))
        assert reused < len(ids)
        last = feed(kind, cache, ids[reused:])
        np.testing.assert_allclose(last, feed(kind, empty(kind), ids), atol=2 * ATOL, rtol=1e-5)
        prefix.store(ids, cache)
        assert prefix.nbytes <= prefix.max_bytes


in_place = pytest.mark.skipif(not ON_CPU, reason="Python reaches a CPU's buffers only")


@in_place
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_happens_to_a_cache_reaches_what_was_stored(kind: str) -> None:
    prefix, cache = core.PrefixCache(LARGE), processed(kind, PROMPT)
    prefix.store(PROMPT, cache)
    scribble(cache)
    for common in (len(PROMPT), len(PROMPT) - 2):
        ids = [*PROMPT[:common], 64 - 1]
        fetched, reused = prefix.fetch(ids, empty(kind))
        feed(kind, fetched, ids[reused:])  # the ordinary step that a prompt begins with
        scribble(fetched)
    fetched, reused = prefix.fetch([*PROMPT, 9], empty(kind))
    assert_holds(kind, fetched, PROMPT[:reused])
    assert reused == len(PROMPT)


@in_place
def test_a_full_buffer_is_copied_too() -> None:
    cache = processed("full", PROMPT)
    feed("full", cache, [1] * (cache.capacity(None) - len(PROMPT)))
    kept = snapshot(cache)
    before = [np.array(array) for array in kept.arrays()]
    scribble(cache)
    for array, expected in zip(kept.arrays(), before, strict=True):
        np.testing.assert_array_equal(np.array(array), expected)


def test_the_last_step_of_a_state_cannot_be_taken_back_from_a_snapshot() -> None:
    cache = processed("state", PROMPT, chunk=30)
    assert cache.can_rewind(30)
    assert not snapshot(cache).can_rewind(30)


def test_snapshots_hold_the_slots_they_fill() -> None:
    prefix = core.PrefixCache(LARGE)
    prefix.store(PROMPT, processed("full", PROMPT))
    assert prefix.nbytes == 2 * 2 * 4 * 32 * len(PROMPT)
    prefix.store([*PROMPT, 5], processed("full", PROMPT))  # the same tokens: the last id is not held yet
    assert (len(prefix), prefix.nbytes) == (1, 2 * 2 * 4 * 32 * len(PROMPT))


def test_what_a_longer_one_holds_too_is_dropped() -> None:
    prefix = core.PrefixCache(LARGE)
    for length in (30, 60, 45):
        prefix.store(PROMPT[:length], processed("full", PROMPT[:length]))
    assert len(prefix) == 1
    states = core.PrefixCache(LARGE)
    for length in (30, 60, 45):
        states.store(PROMPT[:length], processed("state", PROMPT[:length]))
    assert len(states) == 3
    assert states.fetch(PROMPT[:50], empty("state"))[1] == 45


def test_the_least_recently_used_goes_first() -> None:
    size = 2 * 2 * 4 * 32 * 20
    prefix = core.PrefixCache(3 * size)
    prompts = [[first, *PROMPT[:19]] for first in range(4)]
    for ids in prompts[:3]:
        prefix.store(ids, processed("full", ids))
    assert prefix.fetch([*prompts[0], 1], empty("full"))[1] == 20
    prefix.store(prompts[3], processed("full", prompts[3]))
    assert [prefix.fetch([*ids, 1], empty("full"))[1] for ids in prompts] == [20, 0, 20, 20]
    assert prefix.nbytes == 3 * size
    assert not prefix.store(PROMPT, processed("full", PROMPT))  # larger than all the room there is
    assert len(prefix) == 3
    prefix.clear()
    assert (len(prefix), prefix.nbytes) == (0, 0)


def test_another_models_cache_is_refused() -> None:
    prefix = core.PrefixCache(LARGE)
    prefix.store(PROMPT, processed("full", PROMPT))
    others = [empty("full", seed=6), empty("window"), kinds.model("full").make_cache(max_kv_tokens=12)]
    for other in others:
        with pytest.raises(CacheError, match="belongs to another model, or to other cache settings"):
            prefix.fetch(PROMPT, other)
        with pytest.raises(CacheError, match="belongs to another model, or to other cache settings"):
            prefix.store(PROMPT, other)
    assert prefix.fetch(PROMPT, empty("full"))[1] == len(PROMPT) - 1


def test_what_cannot_be_stored() -> None:
    prefix = core.PrefixCache(LARGE)
    with pytest.raises(CacheError, match=r"more tokens than there are ids .expected 90, found 10"):
        prefix.store(PROMPT[:10], processed("full", PROMPT))
    batch = kinds.model("full").make_cache(2)
    kinds.model("full")(mx.array([[1], [2]]), batch)
    with pytest.raises(CacheError, match="holds one sequence"):
        prefix.store([1], batch)
    failed = processed("full", PROMPT)
    failed.begin(1, 3, None)
    with pytest.raises(CacheError, match="failed half-way"):
        prefix.store(PROMPT, failed)
    with pytest.raises(UsageError, match="integers from 0"):
        prefix.fetch([-1], empty("full"))
    with pytest.raises(UsageError, match="max_bytes is out of range"):
        core.PrefixCache(0)
    assert not prefix.store([1, 2], empty("full"))


def test_threads_may_share_one() -> None:
    prefix, failures = core.PrefixCache(50_000), []
    caches = {first: processed("full", [first, *PROMPT[:30]]) for first in range(6)}

    def work(offset: int) -> None:
        try:
            for turn in range(12):
                first = (turn + offset) % 6
                ids = [first, *PROMPT[:30]]
                prefix.store(ids, caches[first].copy())
                cache, reused = prefix.fetch([*ids, 3], empty("full"))
                assert cache.length == reused
                assert prefix.nbytes <= 50_000
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert prefix.nbytes == sum(entry.nbytes for entry in prefix._entries.values())
