"""Samplers draw from the distribution that the formula gives, computed apart in float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from core.errors import UsageError
from core.generation import Sampling

LOGITS = np.array([2.0, 1.5, 1.4, 0.3, 0.2, -0.5, -1.0, -3.0])
DRAWS = 4000


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
    sampler = Sampling(temperature, top_p, top_k, seed=11).checked().sampler()
    logits = mx.array(np.tile(LOGITS, (1, 1)), dtype=mx.float32)
    drawn = mx.concatenate([sampler(logits, position) for position in range(DRAWS)])
    counts = np.bincount(np.array(drawn), minlength=len(LOGITS))
    expected = distribution(temperature, top_k, top_p)
    assert not counts[expected == 0].any(), "nothing outside the kept set"
    possible = expected > 0
    statistic = ((counts - DRAWS * expected)[possible] ** 2 / (DRAWS * expected[possible])).sum()
    degrees = int(possible.sum()) - 1
    # The chi-squared distribution has mean d and variance 2 d: six standard deviations.
    assert statistic <= degrees + 6 * np.sqrt(2 * max(degrees, 1))


def test_greedy_takes_the_most_likely() -> None:
    sampler = Sampling().checked().sampler()
    assert sampler(mx.array([[0.0, 3.0, 2.0], [9.0, 3.0, 2.0]]), 0).tolist() == [1, 0]


def test_positions_and_seeds_give_unrelated_numbers() -> None:
    logits = mx.zeros((1, 1000))
    draw = {
        (seed, position): Sampling(1.0, seed=seed).checked().sampler()(logits, position).item()
        for seed in range(40)
        for position in range(40)
    }
    assert len(set(draw.values())) > 700, "1,600 draws out of 1,000 values"
    for shift in ((0, 1), (1, 0), (1, -1)):
        pairs = [(v, draw.get((s + shift[0], p + shift[1]))) for (s, p), v in draw.items()]
        assert sum(a == b for a, b in pairs) < 12


def test_a_seed_is_drawn_and_told() -> None:
    assert Sampling(0.7).checked().seed is not None
    assert Sampling(0.0).checked().seed is None


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-37, 1e-3])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    sampler = Sampling(temperature, seed=3).checked().sampler()
    assert sampler(mx.array([[0.0, 3.0, 2.0]]), 0).tolist() == [1]


@pytest.mark.parametrize("options", [{"seed": 1.5}, {"top_k": 2.0}, {"seed": "1"}])
def test_seeds_and_counts_are_integers(options: dict) -> None:
    with pytest.raises(UsageError, match="must be integers"):
        Sampling(0.5, **options).checked()
