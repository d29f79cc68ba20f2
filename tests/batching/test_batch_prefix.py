"""Requests that begin like earlier ones: what they take from a prefix cache changes nothing of what they give."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core
from core.errors import CacheError
from tests.batching.models import KINDS, check_alone, model, prompt

ROOM = 1 << 22


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_hit_and_a_longer_one_and_a_shorter_one(kind: str) -> None:
    store = core.PrefixCache(ROOM)
    batch = core.Batch(model(kind), prefix=store, max_rows=4)
    first = batch.submit(prompt(1, 30), max_tokens=10)
    list(batch)
    assert first.result is not None
    assert len(store) == 1
    told = first.prompt_ids + first.result.token_ids
    others = [first.prompt_ids, told, [*told, 5, 6], told[:20], [*told[:20], 1, 2, 3], told[:1], prompt(2, 30)]
    requests = [batch.submit(ids, max_tokens=9) for ids in others for _ in range(2)]
    list(batch)
    for request in requests:
        check_alone(kind, request)


@pytest.mark.parametrize("kind", ["full", "window", "state"])
@settings(max_examples=8)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=15),
    room=st.sampled_from([1, 3000, 12000, 60000]),
    together=st.integers(1, 4),
)
def test_a_full_store(kind: str, lengths: list[tuple[int, int, int]], room: int, together: int) -> None:
    """Snapshots are dropped while requests run that continue them."""
    store = core.PrefixCache(room)
    batch = core.Batch(model(kind), prefix=store, max_rows=together, prefill_chunk=7)
    requests = []
    for seed, length, tokens in lengths:
        requests.append(batch.submit(prompt(seed, length), max_tokens=tokens))
        batch.step()
        batch.step()
        assert store.nbytes <= room
    for _ in batch:
        assert store.nbytes <= room
    for request in requests:
        check_alone(kind, request)


def test_the_store_is_used() -> None:
    """Tokens given to the model, counted."""
    seen: list[int] = []

    class Counting:
        vocab_size = model("full").vocab_size
        make_cache = staticmethod(model("full").make_cache)
        head = staticmethod(model("full").head)

        @staticmethod
        def modules() -> list[object]:
            return []

        @staticmethod
        def hidden_states(tokens, cache=None, lengths=None):  # type: ignore[no-untyped-def]
            seen.append(tokens.size)
            return model("full").hidden_states(tokens, cache, lengths)

    batch = core.Batch(Counting(), prefix=core.PrefixCache(ROOM))
    batch.submit(prompt(1, 50), max_tokens=1)
    list(batch)
    seen.clear()
    again = batch.submit([*prompt(1, 50), 7, 8], max_tokens=1)
    list(batch)
    check_alone("full", again)
    assert seen == [1, 1], "50 tokens were there: one is read, and the last is the first step's"


def test_a_store_of_another_model_is_refused() -> None:
    store = core.PrefixCache(ROOM)
    batch = core.Batch(model("full"), prefix=store)
    batch.submit(prompt(1, 5), max_tokens=3)
    list(batch)
    with pytest.raises(CacheError, match="another model"):
        core.Batch(model("window"), prefix=store)
    with pytest.raises(CacheError, match="other cache settings"):
        core.Batch(model("full"), prefix=store, max_kv_tokens=20)


def test_cancelled_and_failed_requests_leave_nothing_wrong() -> None:
    store = core.PrefixCache(ROOM)
    batch = core.Batch(model("full"), prefix=store)

    def fails(logits, context):  # type: ignore[no-untyped-def]
        if context.generated:
            raise ValueError("no")
        return logits

    failed = batch.submit(prompt(4, 20), max_tokens=9, processors=[fails])
    cancelled = batch.submit(prompt(1, 20), max_tokens=50)
    while not (cancelled.done and failed.done):
        batch.step()
        if batch._scheduler.running.rows and batch._scheduler.running.rows[-1].submitted > 7:
            cancelled.cancel()
    assert failed.error is not None
    assert cancelled.result is not None
    told = cancelled.prompt_ids + cancelled.result.token_ids
    again = [batch.submit(told, max_tokens=8), batch.submit(failed.prompt_ids, max_tokens=8)]
    list(batch)
    for request in (cancelled, *again):
        check_alone("full", request)
