"""Whatever joins and leaves whenever, each request's greedy ids are those that it gives alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core
from core.batching import BatchRequest
from tests.batching.models import KINDS, WINDOW, check_alone, model, prompt

LENGTHS = st.sampled_from([1, 2, 3, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 3 * WINDOW, 3 * WINDOW + 1, 30, 70])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), LENGTHS, st.sampled_from([0, 1, 2, 5, 9, 40])),
        st.tuples(st.just("step"), st.integers(1, 12), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 20), st.just(0)),
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(
    actions=ACTIONS,
    max_rows=st.integers(1, 6),
    chunk=st.sampled_from([1, 5, 16, 64]),
    burst=st.sampled_from([1, 20, 200]),
)
def test_any_schedule(kind: str, actions: list[tuple[str, int, int]], max_rows: int, chunk: int, burst: int) -> None:
    batch = core.Batch(model(kind), max_rows=max_rows, prefill_chunk=chunk, prefill_burst=burst)
    requests: list[BatchRequest] = []
    told: dict[BatchRequest, list[int]] = {}
    events = []
    for what, number, tokens in actions:
        if what == "submit":
            requests.append(batch.submit(prompt(len(requests) % 5, number), max_tokens=tokens))
        elif what == "cancel" and requests:
            requests[number % len(requests)].cancel()
        elif what == "step":
            for _ in range(number):
                events += batch.step()
    events += list(batch)
    for event in events:
        assert event.error is None
        assert event.chunk is not None
        told.setdefault(event.request, [])
        if event.chunk.token_id is not None:
            told[event.request].append(event.chunk.token_id)
    for request in requests:
        check_alone(kind, request)
        assert request.result is not None
        assert told[request] == request.result.token_ids, "the stream tells what the result holds"
        if not request.cancelled:
            assert request.result.finish_reason == "length"
            assert len(request.result.token_ids) == request.max_tokens
    assert sum(event.result is not None for event in events) == len(requests), "one last event for each"
    assert not batch.pending
    assert batch._scheduler.waiting.nbytes == batch._scheduler.waiting.rows == 0


@pytest.mark.parametrize("kind", ["window", "beside"])
def test_prompts_of_all_lengths_around_the_window(kind: str) -> None:
    """mlx-lm merges rotating caches of different lengths wrongly around the window."""
    for around in (WINDOW, 2 * WINDOW, WINDOW + 16 + 16):  # the window; where a cache of it slides for the first time
        batch = core.Batch(model(kind), max_rows=12)
        requests = [batch.submit(prompt(3, around + less), max_tokens=24) for less in range(-4, 5)]
        list(batch)
        for request in requests:
            check_alone(kind, request)


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_that_was_used_shows_nothing_of_whoever_had_it(kind: str) -> None:
    """One request's keys must not be seen by the next in its place, shorter or longer."""
    batch = core.Batch(model(kind), max_rows=3)
    stays = batch.submit(prompt(1, 5), max_tokens=90)
    for length in (60, 2, 33, 1, 8, 50):
        guests = [batch.submit(prompt(length, length), max_tokens=6), batch.submit(prompt(2, length), max_tokens=4)]
        while not all(guest.done for guest in guests):
            batch.step()
        for guest in guests:
            check_alone(kind, guest)
    list(batch)
    check_alone(kind, stays)


def test_two_models_side_by_side() -> None:
    """A model with a window beside one without, step by step."""
    batches = {kind: core.Batch(model(kind), max_rows=4) for kind in ("window", "full")}
    requests = {
        kind: [batch.submit(prompt(i, 3 + 9 * i), max_tokens=30) for i in range(6)] for kind, batch in batches.items()
    }
    while any(batch.pending for batch in batches.values()):
        for batch in batches.values():
            batch.step()
    for kind, each in requests.items():
        for request in each:
            check_alone(kind, request)


@pytest.mark.parametrize("settings", [{"max_kv_tokens": 12}, {"kv_bits": 8, "kv_group_size": 32}])
def test_bounded_and_packed_caches(settings: dict[str, int]) -> None:
    """Alone is then: alone with a cache of the same settings."""
    lm = core.build(_WIDE).model if "kv_bits" in settings else model("full")
    batch = core.Batch(lm, max_rows=4, **settings)
    requests = [batch.submit(prompt(i, 2 + 7 * i), max_tokens=25) for i in range(8)]
    list(batch)
    for request in requests:
        expected = list(core.generate_tokens(lm, request.prompt_ids, max_tokens=25, cache=lm.make_cache(1, **settings)))
        assert request.result is not None
        assert request.result.token_ids == expected


_WIDE = {
    "model_type": "mistral",
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "sliding_window": None,
}
