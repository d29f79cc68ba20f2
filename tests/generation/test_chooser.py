"""Rows of a batch choose what each chooses alone, bit for bit, whenever others join and leave."""

from __future__ import annotations

import dataclasses
import functools
import io
import re
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ProcessorError, UsageError
from core.generation import DEFAULT_ORDER, Chooser, ProcessorContext, Sampling

VOCAB = 61
LLAMA_CPP = (
    *("logit_bias", "processors", "penalties", "dry", "top_k", "typical_p", "top_p", "min_p", "xtc"),
    "temperature",
)


def forbid_the_last(logits: mx.array, context: ProcessorContext) -> mx.array:
    """Forbids the token chosen last, without reading it."""
    return mx.put_along_axis(logits, context.history[-1:][None], mx.array(-mx.inf), axis=1)


def drift(logits: mx.array, context: ProcessorContext) -> mx.array:
    """Prefers tokens by the position and the history's length."""
    return logits + mx.cos(mx.arange(logits.shape[1]) * float(context.position + context.generated))


REQUESTS = [
    Sampling(),
    Sampling(1.0, seed=1),
    Sampling(0.7, top_p=0.8, seed=2),
    Sampling(1.3, top_k=7, seed=3),
    Sampling(0.9, min_p=0.1, typical_p=0.7, seed=4),
    Sampling(1.0, xtc_probability=0.6, xtc_threshold=0.05, seed=5),
    Sampling(0.8, top_p=0.9, top_k=20, min_p=0.02, typical_p=0.95, xtc_probability=0.5, seed=6, order=LLAMA_CPP),
    Sampling(0.0, repetition_penalty=1.4),
    Sampling(1.1, presence_penalty=0.8, frequency_penalty=0.3, penalty_context=5, seed=7),
    Sampling(0.0, dry_multiplier=2.0, dry_breakers=(3, 4)),
    Sampling(0.9, dry_multiplier=0.8, dry_context=9, dry_allowed_length=1, seed=8),
    Sampling(0.9, logit_bias={5: 3.0, 6: -np.inf}, seed=9),
    Sampling(0.9, processors=(forbid_the_last, drift), seed=10),
    Sampling(0.0, processors=(forbid_the_last,), repetition_penalty=0.8),
    Sampling(0.0, no_repeat_ngram_size=3),
    Sampling(0.9, suppress_tokens=(5, 8), bad_words_ids=((7,), (9, 3), (1, 4, 4)), seed=11),
    Sampling(1.2, no_repeat_ngram_size=2, begin_suppress_tokens=tuple(range(9)), min_length=9, seed=12),
]


def prompt(request: int) -> list[int]:
    return [(7 * request + 3 * i * i) % VOCAB for i in range(3 + 11 * (request % 4))]


@functools.cache
def logits(request: int, step: int) -> np.ndarray:
    """A request's logits at a step: few distinct likely tokens, so that penalties and repetitions matter."""
    numbers = np.random.default_rng([request, step % 5])
    return (numbers.normal(size=VOCAB) * 2).round(2).astype(np.float32)


@functools.cache
def alone(request: int, steps: int) -> list[int]:
    chooser = Chooser(VOCAB)
    chooser.join(REQUESTS[request].checked(), prompt(request))
    start = len(prompt(request))
    choices = [chooser.choose(mx.array(logits(request, i))[None], [start + i]).ids for i in range(steps)]
    return [int(ids.item()) for ids in choices]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("join"), st.integers(0, len(REQUESTS) - 1)),
            st.tuples(st.just("leave"), st.integers(0, 20)),
            st.tuples(st.just("step"), st.integers(1, 3)),
        ),
        min_size=4,
        max_size=24,
    )
)
def test_any_schedule_gives_each_request_its_own_ids(schedule: list[tuple[str, int]]) -> None:
    chooser, rows = Chooser(VOCAB), []
    finished: list[tuple[int, list[mx.array]]] = []
    for action, number in schedule:
        if action == "join":
            chooser.join(REQUESTS[number].checked(), prompt(number))
            rows.append((number, []))
            finished.append(rows[-1])
        elif action == "leave" and rows:
            chooser.leave(number % len(rows))
            del rows[number % len(rows)]
        elif action == "step" and rows:
            for _ in range(number):
                batch = mx.array(np.stack([logits(request, len(ids)) for request, ids in rows]))
                ids = chooser.choose(batch, [len(prompt(request)) + len(before) for request, before in rows]).ids
                for row, (_, before) in enumerate(rows):
                    before.append(ids[row])
    assert len(chooser) == len(rows)
    for request, ids in finished:
        assert [int(item.item()) for item in ids] == alone(request, 72)[: len(ids)], REQUESTS[request]


def test_all_requests_at_once_for_longer_than_the_histories_were_made_for() -> None:
    chooser = Chooser(VOCAB)
    for request, sampling in enumerate(REQUESTS):
        chooser.join(sampling.checked(), prompt(request))
    steps = []
    for step in range(72):
        batch = mx.array(np.stack([logits(request, step) for request in range(len(REQUESTS))]))
        steps.append(chooser.choose(batch, [len(prompt(request)) + step for request in range(len(REQUESTS))]).ids)
    for request in range(len(REQUESTS)):
        assert [int(ids[request].item()) for ids in steps] == alone(request, 72), REQUESTS[request]


def test_requests_that_come_one_after_another_and_leave_in_another_order() -> None:
    chooser, rows = Chooser(VOCAB), []
    for step in range(60):
        if step < 2 * len(REQUESTS):
            rows.append((step % len(REQUESTS), []))
            chooser.join(REQUESTS[rows[-1][0]].checked(), prompt(rows[-1][0]))
        batch = mx.array(np.stack([logits(request, len(ids)) for request, ids in rows]))
        ids = chooser.choose(batch, [len(prompt(request)) + len(before) for request, before in rows]).ids.tolist()
        for (_, before), token_id in zip(rows, ids, strict=True):
            before.append(token_id)
        if step > 20 and len(rows) > 1:
            request, before = rows.pop(7 * step % len(rows))
            assert before == alone(request, 72)[: len(before)], REQUESTS[request]
            chooser.leave(7 * step % (len(rows) + 1))


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Sampling)])
def test_every_setting_changes_something(name: str) -> None:
    """The comparison above would be empty for a setting without effect."""
    likely = int(logits(0, 0).argmax())
    changed: dict[str, Any] = {
        "temperature": 2.5,
        "top_p": 0.3,
        "top_k": 2,
        "seed": 99,
        "min_p": 0.5,
        "typical_p": 0.2,
        "xtc_probability": 0.9,
        "xtc_threshold": 0.4,
        "repetition_penalty": 3.0,
        "presence_penalty": 3.0,
        "frequency_penalty": 3.0,
        "penalty_context": 2,
        "dry_multiplier": 5.0,
        "dry_base": 3.0,
        "dry_allowed_length": 3,
        "dry_context": 4,
        "dry_breakers": (likely,),
        "logit_bias": {8: 5.0},
        "suppress_tokens": (likely,),
        "begin_suppress_tokens": (likely,),
        "bad_words_ids": ((likely,),),
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 5,
        "min_length": 40,
        "processors": (forbid_the_last,),
        "order": LLAMA_CPP,
    }
    base = Sampling(1.0, seed=1)
    if name.startswith("xtc"):
        base = dataclasses.replace(base, xtc_probability=0.5, xtc_threshold=0.05)
    if name == "penalty_context":
        base = dataclasses.replace(base, repetition_penalty=3.0)
    if name.startswith("dry"):
        base = Sampling(0.0, dry_multiplier=1.0, dry_allowed_length=1)
    if name.startswith(("suppress", "begin", "bad", "no_repeat", "min_new", "min_length")):
        base = Sampling()
    if name == "order":
        base = dataclasses.replace(base, temperature=3.0, top_p=0.5)

    def ids(sampling: Sampling) -> list[int]:
        chooser = Chooser(VOCAB)
        chooser.join(sampling.checked(), prompt(3), eos=(likely,) if name in ("min_new_tokens", "min_length") else ())
        same = mx.array(logits(0, 0))[None]
        return [int(chooser.choose(same, [36 + i]).ids.item()) for i in range(40)]

    assert ids(base) != ids(dataclasses.replace(base, **{name: changed[name]}))


def test_histories_and_positions_are_what_processors_see() -> None:
    seen: list[tuple[int, int, list[int]]] = []

    def spy(logits: mx.array, context: ProcessorContext) -> mx.array:
        seen.append((context.position, context.generated, context.history.tolist()))  # reading it waits, and works
        return logits

    chooser = Chooser(4)
    chooser.join(Sampling(), [0])
    chooser.join(Sampling(processors=(spy,)).checked(), [3, 1])
    for step in range(3):
        chooser.choose(mx.eye(4)[mx.array([0, (step + 2) % 4])], [1 + step, 12 + step])
    assert seen == [(12, 0, [3, 1]), (13, 1, [3, 1, 2]), (14, 2, [3, 1, 2, 3])]


def test_a_failing_processor_is_named_and_hurts_no_other_row() -> None:
    def broken(logits: mx.array, context: ProcessorContext) -> mx.array:
        raise ZeroDivisionError("by nothing")

    chooser = Chooser(VOCAB)
    chooser.join(REQUESTS[9].checked(), prompt(9))
    chooser.join(Sampling(processors=(broken,)).checked(), [1])
    batch = mx.array(np.stack([logits(9, 0), logits(0, 0)]))
    with pytest.raises(ProcessorError, match="'broken' failed: ZeroDivisionError") as caught:
        chooser.choose(batch, [len(prompt(9)), 1])
    assert caught.value.row == 1
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    chooser.leave(caught.value.row)
    ids = [int(chooser.choose(mx.array(logits(9, i))[None], [len(prompt(9)) + i]).ids.item()) for i in range(20)]
    assert ids == alone(9, 20)


@pytest.mark.parametrize("result", [None, mx.zeros((1, 3)), mx.zeros((VOCAB,))], ids=["none", "short", "flat"])
def test_a_processor_must_return_logits(result: Any) -> None:
    chooser = Chooser(VOCAB)
    chooser.join(Sampling(processors=(lambda logits, context: result,)).checked(), [1])
    with pytest.raises(ProcessorError, match="does not return logits"):
        chooser.choose(mx.zeros((1, VOCAB)), [1])


def test_log_probabilities_are_the_models_own() -> None:
    chooser = Chooser(VOCAB)
    chooser.join(Sampling(), [1])
    chooser.join(Sampling(2.0, top_k=2, logit_bias={3: 9.0}, seed=1).checked(), [1], logprobs=0)
    chooser.join(Sampling(), [1], logprobs=4)
    raw = np.stack([logits(i, 0) for i in range(3)])
    choice = chooser.choose(mx.array(raw), [1, 1, 1])
    exact = raw.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    ids = np.array(choice.ids)
    np.testing.assert_allclose(np.array(choice.logprobs), exact[range(3), ids], atol=1e-5)
    falling = -np.sort(-exact, axis=-1)[:, :4]
    np.testing.assert_allclose(np.array(choice.top_logprobs), falling, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, np.array(choice.top_ids), axis=1), falling, atol=1e-5)
    chooser.leave(1)
    assert chooser.choose(mx.array(raw[1:]), [2, 2]).top_ids is not None, "the row that asked has moved up"
    chooser.leave(1)
    assert chooser.choose(mx.array(raw[:1]), [3]).logprobs is None


@pytest.mark.parametrize("count", [VOCAB - 1, VOCAB])
def test_all_log_probabilities_may_be_asked_for(count: int) -> None:
    chooser = Chooser(VOCAB)
    chooser.join(Sampling(), [1], logprobs=count)
    choice = chooser.choose(mx.array(logits(0, 0))[None], [1])
    assert choice.top_ids is not None
    assert choice.top_ids.shape == (1, count)


@pytest.mark.parametrize(
    ("sampling", "ids", "logprobs"),
    [
        (Sampling(), [VOCAB], None),
        (Sampling(), [-1], None),
        (Sampling(logit_bias={VOCAB: 1.0}), [1], None),
        (Sampling(dry_breakers=(VOCAB,)), [1], None),
        (Sampling(), [1], -1),
        (Sampling(), [1], VOCAB + 1),
        (Sampling(1.0), [1], None),
    ],
)
def test_what_cannot_join_adds_no_row(sampling: Sampling, ids: list[int], logprobs: int | None) -> None:
    chooser = Chooser(VOCAB)
    with pytest.raises(UsageError):
        chooser.join(sampling, ids, logprobs)
    assert len(chooser) == 0


def test_logits_must_fit_the_rows() -> None:
    chooser = Chooser(VOCAB)
    chooser.join(Sampling(), [1])
    for shape, positions in (((2, VOCAB), [1, 1]), ((1, VOCAB + 1), [1]), ((1, VOCAB), [1, 2])):
        with pytest.raises(UsageError, match="do not fit the rows"):
            chooser.choose(mx.zeros(shape), positions)
    with pytest.raises(UsageError, match="no such row"):
        chooser.leave(1)


HOSTILE = {
    "ties": np.zeros(VOCAB),
    "one possible": np.where(np.arange(VOCAB) == 17, -3.0, -np.inf),
    "two possible": np.where(np.isin(np.arange(VOCAB), [0, 60]), 1.0, -np.inf),
    "infinite": np.where(np.arange(VOCAB) == 17, np.inf, 0.0),
    "huge": np.where(np.arange(VOCAB) == 17, 3e38, -3e38),
    "some NaN": np.where(np.arange(VOCAB) % 2 == 0, np.nan, np.arange(VOCAB) / 9),
    "all NaN": np.full(VOCAB, np.nan),
    "none possible": np.full(VOCAB, -np.inf),
    "tiny": np.arange(VOCAB) * 1e-40,
}
HARSH = [
    Sampling(1.0, seed=1),
    Sampling(1e-20, top_p=1e-9, seed=1),
    Sampling(1e38, top_k=10 * VOCAB, top_p=0.9, seed=2),
    Sampling(1.0, top_k=1, seed=2),
    Sampling(1.0, top_p=1e-30, typical_p=1e-30, min_p=1.0, seed=3),
    Sampling(0.5, typical_p=0.5, min_p=1e-30, seed=4),
    Sampling(1.0, xtc_probability=1.0, xtc_threshold=1e-9, seed=5),
    Sampling(1.0, repetition_penalty=1000.0, presence_penalty=-1000.0, frequency_penalty=1000.0, seed=6),
    Sampling(1.0, dry_multiplier=1000.0, dry_base=1000.0, dry_allowed_length=1, seed=7),
    Sampling(0.0, repetition_penalty=1.1),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_logits_give_possible_tokens(name: str) -> None:
    values = HOSTILE[name]
    possible = np.isfinite(values) | (values == np.inf)
    chooser = Chooser(VOCAB)
    for sampling in HARSH:
        chooser.join(sampling.checked(), [1, 2, 1, 2, 1] * 8)
    batch = mx.array(np.tile(values, (len(HARSH), 1)), dtype=mx.float32)
    ids = np.stack([np.array(chooser.choose(batch, [40 + i] * len(HARSH)).ids) for i in range(50)])
    assert ((ids >= 0) & (ids < VOCAB)).all()
    if possible.any():
        assert possible[ids].all(), [HARSH[row] for row in np.unique(np.nonzero(~possible[ids])[1])]


def test_tokens_that_tie_stay_together() -> None:
    """Whichever of equal tokens a sort would put first, all of them stay as likely as before."""
    values = np.full(VOCAB, -9.0)
    values[[4, 5, 6, 50]] = 2.0
    batch = mx.array(np.tile(values, (2, 1)), dtype=mx.float32)
    chooser = Chooser(VOCAB)
    chooser.join(Sampling(1.0, top_k=2, seed=1), [])
    chooser.join(Sampling(1.0, top_p=0.1, seed=2), [])
    ids = np.stack([np.array(chooser.choose(batch, [i, i]).ids) for i in range(200)])
    for row in (0, 1):
        counts = np.bincount(ids[:, row], minlength=VOCAB)
        assert counts[[4, 5, 6, 50]].sum() == 200
        assert counts[[4, 5, 6, 50]].min() > 20


def test_nothing_waits_for_the_device() -> None:
    """The loop stays one step ahead. While MLX traces, asking for a value is an error of its own."""

    class TracedError(Exception):
        pass

    chooser = Chooser(VOCAB)
    for request, sampling in enumerate(REQUESTS):
        chooser.join(sampling.checked(), prompt(request), logprobs=3)

    def step(batch: mx.array) -> None:
        choice = chooser.choose(batch, [40] * len(REQUESTS))
        with pytest.raises(ValueError, match="eval"):
            choice.ids.tolist()
        raise TracedError

    with pytest.raises(TracedError):
        mx.compile(step)(mx.zeros((len(REQUESTS), VOCAB)))


@pytest.mark.parametrize(
    ("sampling", "most"),
    [
        (Sampling(), 1),
        (Sampling(0.8, seed=1), 20),
        (Sampling(0.8, top_p=0.9, seed=1), 30),
        (Sampling(0.8, top_p=0.9, top_k=40, min_p=0.05, seed=1), 40),
    ],
)
def test_common_settings_take_few_operations(sampling: Sampling, most: int) -> None:
    """Each costs the host some microseconds. What only views another array is not counted."""
    chooser = Chooser(VOCAB)
    chooser.join(sampling, [1])
    batch = mx.array(logits(0, 0))[None].astype(mx.bfloat16)
    mx.eval(batch, chooser.choose(batch, [1]).ids)
    graph = io.StringIO()
    mx.export_to_dot(graph, chooser.choose(batch, [2]).ids)
    names = re.findall(r'label ="(\w+)"?, shape=rectangle', graph.getvalue())
    assert sum(name not in ("Broadcast", "ExpandDims", "Squeeze", "Slice") for name in names) <= most, names


def test_whoever_computes_the_ids_computes_the_histories() -> None:
    """Nobody may ever read them, and every step's would then wait for a reader, with all it was made from."""
    chooser = Chooser(VOCAB)
    chooser.join(Sampling(dry_multiplier=1.0, penalty_context=3, repetition_penalty=1.1).checked(), [1])
    for step in range(4):
        mx.eval(chooser.choose(mx.zeros((1, VOCAB)), [step]).ids)
        for state in (chooser._history, chooser._counts, chooser._repetitions):
            for array in vars(state).values():
                if isinstance(array, mx.array):
                    graph = io.StringIO()
                    mx.export_to_dot(graph, array)
                    assert "rectangle" not in graph.getvalue(), "an operation is left to do"


def test_the_order_is_the_documented_one() -> None:
    assert len(set(DEFAULT_ORDER)) == len(DEFAULT_ORDER)
    assert set(LLAMA_CPP) == set(DEFAULT_ORDER)
