"""Scores of single tokens: equal however they are computed, and equal to float64."""

from __future__ import annotations

from itertools import chain

import mlx.core as mx
import numpy as np
import pytest

import core
from core.evaluation.scores import kl_divergence, score_tokens
from core.evaluation.windows import plan_windows
from tests.batching.models import CONFIG, SCALINGS, VOCABULARY
from tests.fixtures import oracle

IDS = np.random.default_rng(0).integers(0, 256, 120).tolist()
ROUNDING = 4e-5  # of losses up to 33


def load(name: str) -> core.LanguageModel:
    return core.load(oracle(name), tokenizer=False, dtype=mx.float32)


def scores(lm: core.LanguageModel, reference: core.LanguageModel | None = None, **options: int) -> np.ndarray:
    """Losses, or with a reference losses and divergences."""
    windows = plan_windows(len(IDS), 24, 8)
    other = None if reference is None else reference.model
    found = list(score_tokens(lm.model, IDS, windows, vocab_size=256, reference=other, **options))
    losses = list(chain.from_iterable(s.losses for s in found))
    if reference is None:
        return np.array(losses)
    return np.array([losses, list(chain.from_iterable(s.divergences for s in found))])


@pytest.mark.parametrize("name", ["mistral_tied", "mistral_swa8", "mixtral_swa8"])
def test_a_batch_of_windows_is_one_by_one(name: str) -> None:
    lm = load(name)
    alone = scores(lm, tokens_at_once=24)
    assert len(alone) == len(IDS) - 1
    np.testing.assert_allclose(scores(lm), alone, atol=ROUNDING, rtol=0)
    np.testing.assert_allclose(scores(lm, tokens_at_once=100), alone, atol=ROUNDING, rtol=0)
    np.testing.assert_allclose(scores(lm, tokens_at_once=5), alone, atol=ROUNDING, rtol=0)  # in pieces, with a cache
    np.testing.assert_allclose(scores(lm, logits_at_once=256 * 3), alone, atol=ROUNDING, rtol=0)  # three positions


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("size", [24, 40, 41, 70])
def test_windows_of_models_whose_rotations_depend_on_the_length(kind: str, size: int) -> None:
    """Against one pass over each window, as in transformers' recipe, however few tokens are read at once."""
    length = 40 if kind == "dynamic" else 80
    raw = CONFIG | {"rope_parameters": SCALINGS[kind], "max_position_embeddings": length}
    model, ids = core.build(raw).model, [token % VOCABULARY for token in IDS]
    windows = list(plan_windows(len(ids), size, size))
    scored = score_tokens(model, ids, iter(windows), vocab_size=VOCABULARY, tokens_at_once=16)
    found = list(chain.from_iterable(each.losses for each in scored))
    expected: list[float] = []
    for window in windows:
        tokens = mx.array([ids[window.start : window.stop]])
        logits = np.array(model(tokens[:, :-1])[0]).astype(np.float64)[-window.scored :]
        chosen = logits[np.arange(window.scored), ids[window.stop - window.scored : window.stop]]
        expected += (np.log(np.exp(logits).sum(axis=-1)) - chosen).tolist()
    np.testing.assert_allclose(found, expected, atol=ROUNDING, rtol=0)


def test_no_more_logits_than_allowed_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load("mistral_tied")
    rows: list[int] = []
    head = type(lm.model).head

    def watched(self: object, x: mx.array) -> mx.array:
        logits: mx.array = head(self, x)  # type: ignore[arg-type]
        rows.append(logits.size)
        return logits

    monkeypatch.setattr(type(lm.model), "head", watched)
    scores(lm, logits_at_once=256 * 5)
    assert max(rows) == 256 * 5
    assert sum(rows) == 256 * (len(IDS) - 1)


def test_a_model_does_not_diverge_from_itself() -> None:
    lm = load("mistral_tied")
    assert scores(lm, lm)[1].max() < 1e-6


def test_losses_and_divergences_are_those_of_float64() -> None:
    lm, reference = load("mistral_headdim32"), load("mistral_tied")
    window = mx.array(IDS[:24])[None]
    p, q = (np.array(m.model(window)[0], dtype=np.float64) for m in (reference, lm))
    p, q = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)) for logits in (p, q))
    losses, divergences = scores(lm, reference)[:, :23]
    np.testing.assert_allclose(losses, -q[np.arange(23), IDS[1:24]], atol=ROUNDING, rtol=0)
    np.testing.assert_allclose(divergences, (np.exp(p) * (p - q)).sum(-1)[:23], rtol=5e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_kl_matches_numpy(scale: float) -> None:
    logits = np.random.default_rng(1).normal(0, scale, (2, 16, 5000)).astype(np.float32)
    p, q = logits.astype(np.float64)
    p, q = (
        x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
        for x in (p, q)
    )
    expected = (np.exp(p) * (p - q)).sum(-1)
    found = np.array(kl_divergence(mx.array(logits[0]), mx.array(logits[1])))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-6)


def test_kl_of_a_token_that_both_rule_out() -> None:
    logits = mx.array([[0.0, 1.0, -float("inf")]])
    assert kl_divergence(logits, logits).item() == 0
    assert kl_divergence(logits, mx.array([[0.0, -float("inf"), 0.0]])).item() == float("inf")
