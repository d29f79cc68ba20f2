"""Settings are checked, and tokens drawn from the distribution that the formula gives, computed apart in float64."""

from __future__ import annotations

import dataclasses
import json
import pickle

import mlx.core as mx
import numpy as np
import pytest

from core.errors import UsageError
from core.generation import DEFAULT_ORDER, Chooser, Sampling, SamplingOptions, sampling_from

LOGITS = np.array([2.0, 1.5, 1.4, 0.3, 0.2, -0.5, -1.0, -3.0])
DRAWS = 4000


def chosen(settings: Sampling, logits: mx.array, position: int) -> mx.array:
    """What the settings choose in each row of ``logits``."""
    chooser = Chooser(logits.shape[-1])
    for _ in range(logits.shape[0]):
        chooser.join(settings.checked(), [])
    return chooser.choose(logits, [position] * logits.shape[0]).ids


def draws(settings: Sampling) -> np.ndarray:
    """``DRAWS`` tokens out of ``LOGITS``, at as many positions: a batch at a time, of rows that differ in position."""
    chooser, rows = Chooser(len(LOGITS)), 200
    for _ in range(rows):
        chooser.join(settings.checked(), [])
    logits = mx.array(np.tile(LOGITS, (rows, 1)), dtype=mx.float32)
    steps = [chooser.choose(logits, range(start, start + rows)).ids for start in range(0, DRAWS, rows)]
    return np.array(mx.concatenate(steps))


def assert_drawn_from(expected: np.ndarray, drawn: np.ndarray) -> None:
    """Pearson's chi-squared test."""
    counts = np.bincount(drawn, minlength=len(expected))
    assert not counts[expected == 0].any(), "nothing outside the kept set"
    possible = expected > 0
    wanted = len(drawn) * expected[possible]
    statistic = ((counts[possible] - wanted) ** 2 / wanted).sum()
    degrees = int(possible.sum()) - 1
    # The chi-squared distribution has mean d and variance 2 d: six standard deviations.
    assert statistic <= degrees + 6 * np.sqrt(2 * max(degrees, 1))


def distribution(temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Temperature, then top-k, then the smallest nucleus that reaches ``top_p``."""
    scaled = LOGITS / temperature
    order = np.argsort(-scaled)
    kept = order[: top_k or len(order)]
    weights = np.exp(scaled[kept] - scaled.max())
    weights /= weights.sum()
    size = int(np.searchsorted(np.cumsum(weights), top_p) + 1)
    expected = np.zeros(len(LOGITS))
    expected[kept[:size]] = weights[:size] / weights[:size].sum()
    return expected


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (2.0, 0, 1.0),
        (1.0, 3, 1.0),
        (1.0, 0, 0.7),
        (1.3, 5, 0.8),
        (1.0, 100, 0.05),
        (1.0, 1, 1.0),
    ],
)
def test_frequencies_match_the_formula(temperature: float, top_k: int, top_p: float) -> None:
    drawn = draws(Sampling(temperature, top_p, top_k, seed=11))
    assert_drawn_from(distribution(temperature, top_k, top_p), drawn)


def test_greedy_takes_the_most_likely() -> None:
    assert chosen(Sampling(), mx.array([[0.0, 3.0, 2.0], [9.0, 3.0, 2.0]]), 0).tolist() == [1, 0]


def test_positions_and_seeds_give_unrelated_numbers() -> None:
    logits, chooser = mx.zeros((40, 1000)), Chooser(1000)
    for seed in range(40):
        chooser.join(Sampling(1.0, seed=seed), [])
    steps = [chooser.choose(logits, [position] * 40).ids.tolist() for position in range(40)]
    draw = {(seed, position): steps[position][seed] for seed in range(40) for position in range(40)}
    assert len(set(draw.values())) > 700, "1,600 draws out of 1,000 values"
    for shift in ((0, 1), (1, 0), (1, -1)):
        pairs = [(v, draw.get((s + shift[0], p + shift[1]))) for (s, p), v in draw.items()]
        assert sum(a == b for a, b in pairs) < 12


def test_a_seed_is_drawn_and_told() -> None:
    assert Sampling(0.7).checked().seed is not None
    assert Sampling(0.0).checked().seed is None


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-37, 1e-3])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert chosen(Sampling(temperature, seed=3), mx.array([[0.0, 3.0, 2.0]]), 0).tolist() == [1]


@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 1e-46},
        {"top_p": 1e-300},
        {"typical_p": 1e-46},
        {"min_p": 1.0, "temperature": 1e39},
        {"min_p": 1.0, "temperature": 1e300},
        {"top_p": 1e-46, "temperature": 1e300, "top_k": 2},
    ],
    ids=str,
)
def test_numbers_beyond_float32_hide_not_everything(settings: dict) -> None:
    """The token that typical_p keeps first is another than the likeliest: the one whose surprise is the entropy."""
    settings = {"temperature": 0.7, "seed": 3} | settings
    logits = LOGITS[::-1] / settings["temperature"]
    surprise = np.log(np.exp(logits).sum()) - logits
    typical = int(np.abs(surprise - (np.exp(-surprise) * surprise).sum()).argmin())
    kept = typical if "typical_p" in settings else len(LOGITS) - 1
    rows = mx.array(np.tile(LOGITS[::-1], (3, 1)), dtype=mx.float32)
    for position in range(5):
        assert chosen(Sampling(**settings), rows, position).tolist() == [kept] * 3


@pytest.mark.parametrize("temperature", [1e31, 1e39, 1e300])
def test_beyond_all_heat_every_token_that_is_left_is_as_likely(temperature: float) -> None:
    uniform = np.array([1, 1, 1, 0, 0, 0, 0, 0]) / 3
    assert_drawn_from(uniform, draws(Sampling(temperature, seed=5, top_k=3, top_p=0.99)))


BAD = [
    {"temperature": -1.0},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"temperature": "hot"},
    {"temperature": 10**400},
    {"temperature": 10**5000},
    {"top_k": -(10**5000)},
    {"dry_breakers": [10**5000]},
    {"top_p": 0.0},
    {"top_p": 1.1},
    {"top_k": -1},
    {"top_k": 2.0},
    {"seed": 1.5},
    {"seed": "1"},
    {"min_p": -0.1},
    {"min_p": 1.5},
    {"typical_p": 0},
    {"typical_p": 2},
    {"xtc_probability": 1.01},
    {"xtc_threshold": 0.0},
    {"xtc_threshold": 0.6},
    {"repetition_penalty": 0},
    {"repetition_penalty": float("inf")},
    {"presence_penalty": float("nan")},
    {"frequency_penalty": float("inf")},
    {"penalty_context": 0},
    {"penalty_context": 1.0},
    {"dry_multiplier": -1},
    {"dry_base": 0.5},
    {"dry_allowed_length": 0},
    {"dry_context": -1},
    {"dry_breakers": ["a"]},
    {"dry_breakers": [-1]},
    {"dry_breakers": 3},
    {"logit_bias": [1, 2]},
    {"logit_bias": {1: float("nan")}},
    {"logit_bias": {1: float("inf")}},
    {"logit_bias": {-1: 1.0}},
    {"logit_bias": {"a": 1.0}},
    {"logit_bias": {1: 10**400}},
    {"suppress_tokens": 3},
    {"suppress_tokens": [-1]},
    {"begin_suppress_tokens": ["a"]},
    {"bad_words_ids": [1, 2]},
    {"bad_words_ids": [[]]},
    {"bad_words_ids": [["a"]]},
    {"bad_words_ids": "ab"},
    {"no_repeat_ngram_size": -1},
    {"min_new_tokens": 1.5},
    {"min_length": -1},
    {"processors": print},
    {"processors": [1]},
    {"order": "top_k"},
    {"order": 5},
    {"order": ["top_k", "topp"]},
    {"order": ["top_k", "top_k"]},
    {"top_k": 3, "order": ["temperature"]},
]


@pytest.mark.parametrize("options", BAD, ids=lambda options: next(iter(options)))
def test_a_bad_setting_is_one_error_that_names_it(options: dict) -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(**({"temperature": 0.5} | options)).checked()
    assert next(iter(options)) in str(caught.value)
    assert str(caught.value).count("\n") <= 1


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(UsageError, match="'heat'"):
        sampling_from({"heat": 1.0})


def test_options_and_fields_are_the_same() -> None:
    assert list(SamplingOptions.__annotations__) == [item.name for item in dataclasses.fields(Sampling)]


def test_checked_settings_are_as_given_and_checked_again_the_same() -> None:
    given = Sampling(0.5, seed=3, logit_bias={4: -1, 5: float("-inf")}, dry_breakers=[1, 2], order=list(DEFAULT_ORDER))
    checked = given.checked()
    assert checked.logit_bias == {4: -1.0, 5: float("-inf")}
    assert (checked.dry_breakers, checked.order) == ((1, 2), DEFAULT_ORDER)
    assert checked.checked() == checked


def test_settings_can_be_written_down() -> None:
    """A front end logs them, another process is sent them."""
    checked = Sampling(0.5, seed=3).checked()
    assert json.loads(json.dumps(dataclasses.asdict(checked)))["seed"] == 3
    assert pickle.loads(pickle.dumps(checked)) == checked


def test_names_that_do_nothing_may_be_left_out_of_an_order() -> None:
    assert Sampling(0.5, top_k=3, seed=1, order=("top_k", "temperature")).checked().order == ("top_k", "temperature")
    assert Sampling(0.0, top_k=3, order=()).checked().order == (), "at temperature 0 nothing is truncated"


def test_a_repetition_longer_than_any_integer_of_the_device_is_none() -> None:
    settings = Sampling(dry_multiplier=1.0, dry_allowed_length=2**40)
    assert chosen(settings, mx.array(LOGITS[None], dtype=mx.float32), 0).tolist() == [0]
