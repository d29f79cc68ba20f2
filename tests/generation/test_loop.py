"""The token loop: its ids are those of a loop without a cache, and it leaves exactly what it says in the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
from core.errors import UsageError
from core.generation import GenerationStats, Sampling, stream_tokens
from tests.generation.conftest import CONFIG

PROMPT = [1, 7, 3, 9, 20, 44, 2, 2, 17, 5, 30, 11]


def naive(model: core.nn.Decoder, prompt: list[int], count: int) -> list[int]:
    """Greedy ids, the whole sequence anew for each token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(mx.argmax(model(mx.array([ids]))[0, -1]).item()))
    return ids[len(prompt) :]


def assert_holds(model: core.nn.Decoder, cache: core.Cache, ids: list[int]) -> None:
    """The cache holds exactly ``ids``: whatever follows, it answers as a fresh cache that was given them."""
    assert cache.length == len(ids)
    fresh = model.make_cache()
    model(mx.array([ids]), fresh)
    probe = mx.array([[4, 8, 15, 16, 23, 42]])
    np.testing.assert_allclose(
        np.array(model(probe, cache.copy())), np.array(model(probe, fresh)), atol=1e-5, rtol=1e-5
    )


class Counting:
    """The model, counting its steps."""

    def __init__(self, model: core.nn.Decoder) -> None:
        self.model = model
        self.widths: list[int] = []
        self.head_rows: list[int] = []
        self.make_cache = model.make_cache

    def hidden_states(self, tokens: mx.array, cache: core.Cache | None = None) -> mx.array:
        self.widths.append(tokens.shape[1])
        return self.model.hidden_states(tokens, cache)

    def head(self, x: mx.array) -> mx.array:
        self.head_rows.append(x.shape[1])
        return self.model.head(x)


def test_greedy_ids_are_those_without_a_cache(model: core.nn.Decoder) -> None:
    assert list(core.generate_tokens(model, PROMPT, max_tokens=40)) == naive(model, PROMPT, 40)


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 9, 11, 12, 100])
def test_the_prompt_may_come_in_chunks(model: core.nn.Decoder, chunk: int) -> None:
    ids = list(core.generate_tokens(model, PROMPT, max_tokens=5, prefill_chunk=chunk))
    assert ids == naive(model, PROMPT, 5)


@pytest.mark.parametrize("max_tokens", [0, 1, 2, 30])
def test_no_step_beyond_max_tokens(model: core.nn.Decoder, max_tokens: int) -> None:
    counting, cache = Counting(model), model.make_cache()
    ids = list(core.generate_tokens(counting, PROMPT, max_tokens=max_tokens, cache=cache))
    assert len(ids) == max_tokens
    if max_tokens == 0:
        assert (counting.widths, cache.length) == ([], 0)
        return
    assert counting.widths == [len(PROMPT)] + [1] * (max_tokens - 1)
    assert counting.head_rows == [1] * max_tokens, "the head sees one position a step"
    assert_holds(model, cache, PROMPT + ids[:-1])


@pytest.mark.parametrize("stop_at", [1, 2, 25])
def test_eos_stops_after_one_step_more_that_leaves_no_trace(model: core.nn.Decoder, stop_at: int) -> None:
    ids = naive(model, PROMPT, 40)
    eos = ids[stop_at - 1]
    expected = ids[: ids.index(eos) + 1]
    counting, cache = Counting(model), model.make_cache()
    assert list(core.generate_tokens(counting, PROMPT, max_tokens=40, eos={eos, 60}, cache=cache)) == expected
    assert len(counting.widths) == 1 + len(expected)
    assert_holds(model, cache, PROMPT + expected[:-1])


@pytest.mark.parametrize("taken", [1, 2, 25])
@pytest.mark.parametrize("how", ["close", "throw", "drop"])
def test_an_abandoned_iterator_leaves_what_it_yielded(model: core.nn.Decoder, taken: int, how: str) -> None:
    cache = model.make_cache()
    tokens: Iterator[int] = core.generate_tokens(model, PROMPT, max_tokens=40, cache=cache)
    ids = [next(tokens) for _ in range(taken)]
    if how == "close":
        tokens.close()  # type: ignore[attr-defined]
    elif how == "throw":
        with contextlib.suppress(ZeroDivisionError):
            tokens.throw(ZeroDivisionError())  # type: ignore[attr-defined]
    else:
        del tokens
    assert_holds(model, cache, PROMPT + ids[:-1])


def test_an_iterator_that_never_starts_touches_nothing(model: core.nn.Decoder) -> None:
    cache = model.make_cache()
    core.generate_tokens(model, PROMPT, cache=cache).close()  # type: ignore[attr-defined]
    assert cache.length == 0
    assert cache.nbytes == 0


def test_several_turns_on_one_cache_equal_one_long_prompt(model: core.nn.Decoder) -> None:
    cache, history = model.make_cache(), []
    for turn in range(5):
        said = [(11 * turn + i) % 61 for i in range(4)]
        # The last id of the turn before is not in the cache yet: it leads the next prompt.
        new = said if not history else [history[-1], *said]
        ids = list(core.generate_tokens(model, new, max_tokens=9, cache=cache))
        history += said
        assert ids == naive(model, history, 9), f"turn {turn}"
        history += ids


def test_sampled_ids_depend_on_the_seed_alone(model: core.nn.Decoder) -> None:
    def ids(seed: int | None, **options: float) -> list[int]:
        return list(core.generate_tokens(model, PROMPT, max_tokens=20, temperature=1.5, seed=seed, **options))

    mx.random.seed(1)
    before = mx.random.state[0].tolist()
    first = ids(3)
    assert mx.random.state[0].tolist() == before, "the user's random numbers are left alone"
    mx.random.seed(2)
    assert ids(3) == first
    assert ids(3, prefill_chunk=5) == first
    assert ids(4) != first
    assert ids(None) != ids(None)
    assert ids(3, top_k=1) == naive(model, PROMPT, 20)
    assert ids(3, top_p=1e-6) == naive(model, PROMPT, 20)


def test_what_the_cache_holds_counts_when_it_is_named(model: core.nn.Decoder) -> None:
    sampling = Sampling(repetition_penalty=1.5, dry_multiplier=1.0).checked()
    whole = [token.id for token in stream_tokens(model, PROMPT, sampling, max_tokens=20)]
    cache = model.make_cache()
    model(mx.array([PROMPT[:7]]), cache)
    rest = stream_tokens(model, PROMPT[7:], sampling, max_tokens=20, cache=cache, history=PROMPT[:7])
    assert [token.id for token in rest] == whole


def test_statistics_count_what_happened(model: core.nn.Decoder) -> None:
    stats = GenerationStats()
    list(core.generate_tokens(model, PROMPT, max_tokens=6, stats=stats))
    assert (stats.prompt_tokens, stats.generated_tokens) == (len(PROMPT), 6)
    assert stats.prompt_seconds > 0
    assert stats.decode_seconds > 0
    assert stats.peak_memory > 0
    assert stats.decode_tps == pytest.approx(5 / stats.decode_seconds)
    assert stats.prompt_tps == pytest.approx(len(PROMPT) / stats.prompt_seconds)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_ids": []},
        {"max_tokens": -1},
        {"prefill_chunk": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_k": -2},
    ],
)
def test_bad_settings_are_refused_before_anything_runs(model: core.nn.Decoder, options: dict) -> None:
    with pytest.raises(UsageError):
        core.generate_tokens(model, **({"prompt_ids": PROMPT} | options))


@pytest.mark.parametrize("ids", [[61, 3], [-1], [2**40], [1.5], ["a"]])
def test_ids_that_the_vocabulary_has_not_are_refused(model: core.nn.Decoder, ids: list) -> None:
    with pytest.raises(UsageError):
        core.generate_tokens(model, ids)


def test_ids_may_come_in_an_array(model: core.nn.Decoder) -> None:
    assert list(core.generate_tokens(model, np.array(PROMPT), max_tokens=3)) == naive(model, PROMPT, 3)


def test_an_error_in_the_step_ahead_leaves_what_was_yielded(model: core.nn.Decoder) -> None:
    class Failing(Counting):
        def head(self, x: mx.array) -> mx.array:
            if len(self.head_rows) == 3:
                raise ZeroDivisionError
            return super().head(x)

    cache, ids = model.make_cache(), []
    with pytest.raises(ZeroDivisionError):
        ids.extend(core.generate_tokens(Failing(model), PROMPT, max_tokens=9, cache=cache))
    assert cache.length == len(PROMPT) + 1, "two ids were yielded, and the last one's key is not in the cache"


@pytest.mark.parametrize("scaling", [{"rope_type": "dynamic", "factor": 4.0}])
def test_length_dependent_rotations_see_the_whole_prompt(scaling: dict) -> None:
    config = CONFIG | {"max_position_embeddings": 8, "sliding_window": None, "rope_scaling": scaling}
    mx.random.seed(9)
    scaled = core.build(config).model
    whole = list(core.generate_tokens(scaled, PROMPT * 3, max_tokens=6))
    assert list(core.generate_tokens(scaled, PROMPT * 3, max_tokens=6, prefill_chunk=5)) == whole


def test_a_long_prompt_leaves_no_more_than_the_window_behind(model: core.nn.Decoder) -> None:
    list(core.generate_tokens(model, [3] * 4000, max_tokens=1))  # a GPU's workspaces stay from the first use on
    cache = model.make_cache()
    before = mx.get_active_memory()
    list(core.generate_tokens(model, [3] * 4000, max_tokens=1, cache=cache))
    assert mx.get_active_memory() - before <= cache.nbytes + 100_000


def test_float_tokens_are_refused_and_spoil_no_cache(model: core.nn.Decoder) -> None:
    cache = model.make_cache()
    with pytest.raises(UsageError, match="must be integers"):
        model(mx.zeros((1, 3)), cache)
    model(mx.array([PROMPT]), cache)


def test_progress_of_a_prompt(model: core.nn.Decoder) -> None:
    """After each chunk but the last; what it raises ends the generation, and the cache holds the chunks."""
    seen: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 4:
            raise KeyboardInterrupt

    told = list(core.generate_tokens(model, PROMPT, max_tokens=2, prefill_chunk=5, progress=note))
    assert seen == [(5, 12), (10, 12)]
    assert told == naive(model, PROMPT, 2)
    cache = model.make_cache()
    with pytest.raises(KeyboardInterrupt):
        list(core.generate_tokens(model, PROMPT, max_tokens=2, prefill_chunk=5, cache=cache, progress=note))
    assert_holds(model, cache, PROMPT[:10])


@pytest.mark.parametrize(
    "options", [{"max_tokens": "5"}, {"max_tokens": 2.5}, {"max_tokens": -1}, {"prefill_chunk": 0.5}]
)
def test_counts_are_integers(model: core.nn.Decoder, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} is out of range"):
        core.generate_tokens(model, PROMPT, **options)
