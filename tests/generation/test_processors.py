"""Each processor against one of another's making: transformers' own, or the published formula in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.generation import Chooser, Sampling
from core.generation.processors.noise import gumbel, uniform
from tests.generation.test_sampling import DRAWS, LOGITS, assert_drawn_from, draws

RECORDED = np.load(Path(__file__).parent / "transformers_processors.npz")
CASES: dict[str, dict[str, Any]] = json.loads(str(RECORDED["cases"]))["cases"]
FORBIDDING: dict[str, dict[str, Any]] = json.loads(str(RECORDED["cases"]))["forbidding"]
EOS = (2, 7)  # as in the script that made them
VOCAB = 7
IDS = st.lists(st.integers(0, VOCAB - 1), max_size=40) | st.lists(st.integers(0, VOCAB - 1), min_size=14, max_size=20)
GENERATED = st.sampled_from([0, 5, 1000])  # of the history; the rest is the prompt


def processed(sampling: Sampling, history: list[int], logits: np.ndarray, generated: int = 0) -> np.ndarray:
    """What the settings make of logits ``[vocab]`` after a history whose last ids were generated."""
    chooser = Chooser(len(logits))
    prompt = len(history) - generated
    chooser.join(sampling.checked(), history[:prompt])
    for position in range(prompt, len(history)):
        forced = np.full((1, len(logits)), -np.inf)
        forced[0, history[position]] = 0.0
        assert chooser.choose(mx.array(forced, dtype=mx.float32), [position]).ids.item() == history[position]
    return np.array(chooser.processed(mx.array(logits, dtype=mx.float32)[None], [len(history)]))[0]


@pytest.mark.parametrize("name", CASES)
def test_transformers_keeps_and_changes_the_same(name: str) -> None:
    given_settings = dict(CASES[name])
    bias = {int(token): value for token, value in given_settings.pop("logit_bias", {}).items()}
    temperature = given_settings.pop("temperature", 1.0)
    sampling = Sampling(temperature, seed=1, logit_bias=bias, **given_settings)
    for row, (logits, ids) in enumerate(zip(RECORDED["logits"], RECORDED["ids"], strict=True)):
        expected = RECORDED[f"case {name}"][row]
        for generated in (0, 7):
            ours = processed(sampling, ids.tolist(), logits, generated) / temperature
            np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected))
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORBIDDING)
def test_transformers_forbids_the_same(name: str) -> None:
    """All rows at once, and some alone."""
    sampling = Sampling(**({"temperature": 1.0, "seed": 1} | FORBIDDING[name])).checked()
    for place, generated in enumerate((0, 7)):
        expected = RECORDED[f"forbidding {name}"][place]
        for rows in ([0, 1, 2, 3], [2], [3]):
            chooser = Chooser(RECORDED["logits"].shape[1])
            histories = RECORDED["repeating"][rows]
            start = histories.shape[1] - generated
            for history in histories:
                chooser.join(sampling, history[:start].tolist(), eos=EOS)
            for ids in histories[:, start:].T if chooser._stateful else ():
                chooser._record(mx.array(ids))
            logits = mx.array(RECORDED["logits"][rows])
            ours = np.array(chooser.processed(logits, [histories.shape[1]] * len(rows))) / sampling.temperature
            np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected[rows]))
            np.testing.assert_allclose(ours, expected[rows], rtol=1e-5, atol=1e-5)


def test_a_forbidden_word_longer_than_the_history() -> None:
    """All of its beginning must be there."""
    sampling = Sampling(bad_words_ids=[[1, 2, 3, 4], [3, 5], [0, 0, 6]])
    for history, hidden in (([2, 3], [5]), ([1, 2, 3], [4, 5]), ([0], [])):
        assert np.isneginf(processed(sampling, history, np.zeros(VOCAB))).nonzero()[0].tolist() == hidden


def test_where_everything_is_forbidden_the_id_is_0() -> None:
    chooser = Chooser(VOCAB)
    chooser.join(Sampling(suppress_tokens=range(VOCAB)).checked(), [1])
    assert chooser.choose(mx.zeros((1, VOCAB)), [1]).ids.item() == 0


@settings(max_examples=100)
@given(
    IDS,
    GENERATED,
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from([1.0, 1.5, 0.5]),
    st.sampled_from([0.0, 0.7, -0.4]),
    st.sampled_from([0.0, 0.3]),
)
def test_penalties_are_their_formulas(
    history: list[int], generated: int, context: int | None, repetition: float, presence: float, frequency: float
) -> None:
    """Keskar et al. (2019) with the sign handled, then OpenAI's ``mu - c alpha_frequency - (c > 0) alpha_presence``."""
    logits = np.array([2.0, -1.0, 0.5, 0.0, -3.0, 1.25, 4.0])
    expected = logits.copy()
    for token in range(VOCAB):
        count = history[-context if context else 0 :].count(token)
        if count:
            expected[token] *= repetition if expected[token] < 0 else 1 / repetition
            expected[token] -= count * frequency + presence
    sampling = Sampling(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        penalty_context=context,
    )
    ours = processed(sampling, history, logits, min(generated, len(history)))
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


def dry(
    history: list[int], multiplier: float, base: float, allowed: int, context: int | None, breakers: set[int]
) -> np.ndarray:
    """p-e-w's description, place by place: how long a match before each token, and what that costs the token."""
    seen = history[-context:] if context else history
    penalties = np.zeros(VOCAB)
    for place in range(1, len(seen)):
        token, length = seen[place], 0
        while length < place and seen[place - 1 - length] == seen[-1 - length] and seen[-1 - length] not in breakers:
            length += 1
        if length >= allowed and token not in breakers:
            penalties[token] = max(penalties[token], multiplier * base ** (length - allowed))
    return penalties


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 2), min_size=8, max_size=60),
    GENERATED,
    st.sampled_from([(0.8, 1.75, 2), (2.0, 1.0, 1), (1.0, 1.3, 1), (1.0, 1.3, 3)]),
    st.one_of(st.none(), st.integers(1, 30)),
    st.sets(st.integers(0, 4), max_size=2),
)
def test_dry_is_its_formula(
    history: list[int],
    generated: int,
    numbers: tuple[float, float, int],
    context: int | None,
    breakers: set[int],
) -> None:
    multiplier, base, allowed = numbers
    sampling = Sampling(
        dry_multiplier=multiplier,
        dry_base=base,
        dry_allowed_length=allowed,
        dry_context=context,
        dry_breakers=tuple(breakers),
    )
    logits = np.zeros(VOCAB)
    ours = processed(sampling, history, logits, min(generated, len(history)))
    np.testing.assert_allclose(-ours, dry(history, multiplier, base, allowed, context, breakers), rtol=1e-4, atol=1e-6)


def test_dry_goes_on_past_what_a_float_holds() -> None:
    ours = processed(Sampling(dry_multiplier=1.0, dry_base=4.0), [1] * 400, np.zeros(VOCAB))
    assert ours[1] < -1e30
    assert (ours[[0, 2, 3]] == 0).all()


def xtc(logits: np.ndarray, threshold: float) -> np.ndarray:
    """Probabilities once all likely tokens but the least likely of them are excluded."""
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    likely = [i for i in np.argsort(-probabilities) if probabilities[i] >= threshold]
    probabilities[likely[:-1]] = 0.0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.22, 0.065])  # the likeliest of LOGITS have 0.38, 0.23, 0.21, 0.07
@pytest.mark.parametrize("probability", [1.0, 0.4])
def test_xtc_is_drawn_from_its_formula(probability: float, threshold: float) -> None:
    plain = np.exp(LOGITS) / np.exp(LOGITS).sum()
    expected = probability * xtc(LOGITS, threshold) + (1 - probability) * plain
    drawn = draws(Sampling(1.0, xtc_probability=probability, xtc_threshold=threshold, seed=4))
    assert_drawn_from(expected, drawn)


def test_typical_and_min_p_are_drawn_from_their_formulas() -> None:
    scaled = LOGITS / 1.5
    probabilities = np.exp(scaled) / np.exp(scaled).sum()
    strangeness = np.abs(-np.log(probabilities) + (probabilities * np.log(probabilities)).sum())
    order = np.argsort(strangeness)
    kept = order[: int(np.searchsorted(np.cumsum(probabilities[order]), 0.6) + 1)]
    expected = np.zeros_like(probabilities)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    assert_drawn_from(expected, draws(Sampling(1.5, typical_p=0.6, seed=1)))
    likely = np.where(probabilities >= 0.3 * probabilities.max(), probabilities, 0)
    assert_drawn_from(likely / likely.sum(), draws(Sampling(1.5, min_p=0.3, seed=1)))


def test_the_temperature_counts_where_the_order_has_it() -> None:
    """llama.cpp truncates before it scales: another nucleus, drawn from at the temperature."""
    first, last = ("temperature", "top_p"), ("top_p", "temperature")
    cold = np.exp(LOGITS) / np.exp(LOGITS).sum()
    size = int(np.searchsorted(np.cumsum(cold), 0.6) + 1)  # LOGITS fall
    hot = np.exp(LOGITS / 2.5)
    expected = np.where(np.arange(len(LOGITS)) < size, hot, 0)
    assert_drawn_from(expected / expected.sum(), draws(Sampling(2.5, top_p=0.6, seed=1, order=last)))
    wider = np.bincount(draws(Sampling(2.5, top_p=0.6, seed=1, order=first)), minlength=len(LOGITS))
    assert (wider > 0).sum() > size


def test_a_processor_between_two_truncations() -> None:
    """The second one sorts anew."""
    sampling = Sampling(1.0, top_k=3, top_p=0.6, seed=1, logit_bias={2: 3.0}, order=("top_k", "logit_bias", "top_p"))
    ours = processed(sampling, [], LOGITS)
    assert np.isfinite(ours).tolist() == [False, False, True] + [False] * 5, "of the three, the third is now 0.85"
    last = ("xtc", "typical_p", "logit_bias", "top_k")
    ours = processed(Sampling(1.0, top_k=1, typical_p=0.9, seed=1, logit_bias={3: 4.0}, order=last), [], LOGITS)
    assert np.flatnonzero(np.isfinite(ours)).tolist() == [3]


def test_forbidden_and_favoured_tokens() -> None:
    drawn = draws(Sampling(1.0, logit_bias={0: -np.inf, 7: 5.0}, seed=2))
    weights = np.exp(LOGITS + np.array([-np.inf, 0, 0, 0, 0, 0, 0, 5.0]))
    assert_drawn_from(weights / weights.sum(), drawn)


@pytest.mark.parametrize("vary", ["seed", "position"])
def test_noise_is_gumbels(vary: str) -> None:
    """Uniform once mapped through the distribution, over tokens, and over seeds or positions; 64 bins."""
    numbers = range(512)
    fixed = [5] * 512
    noise = np.array(gumbel(numbers, fixed, 61) if vary == "seed" else gumbel(fixed, numbers, 61)).astype(np.float64)
    flat = np.exp(-np.exp(-noise))
    for sample in (flat.ravel(), flat[:, 0], flat[:, -1], flat[0], flat[-1]):
        assert_drawn_from(np.full(64, 1 / 64), np.minimum(sample * 64, 63).astype(int))
    for apart in (np.corrcoef(flat[1:, 0], flat[:-1, 0])[0, 1], np.corrcoef(flat[:, 0], flat[:, 1])[0, 1]):
        assert abs(apart) < 6 / np.sqrt(512)


def test_the_hosts_numbers_are_uniform_and_apart_from_the_devices() -> None:
    host = np.array([uniform(7, position) for position in range(DRAWS)])
    assert_drawn_from(np.full(64, 1 / 64), (host * 64).astype(int))
    device = np.array(gumbel([7] * DRAWS, range(DRAWS), 1))[:, 0]
    assert abs(np.corrcoef(host, device)[0, 1]) < 6 / np.sqrt(DRAWS)
