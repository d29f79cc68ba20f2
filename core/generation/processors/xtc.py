"""XTC, "exclude top choices": now and then, all likely tokens but the least likely of them are hidden.

As p-e-w described it (https://github.com/oobabooga/text-generation-webui/pull/6335) and llama.cpp implements it: with
probability ``xtc_probability`` for each token, where two or more have at least the probability ``xtc_threshold``.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from core.generation.processors.noise import uniform
from core.generation.processors.scores import Scores, column
from core.generation.processors.stage import Now
from core.generation.sampling import Sampling

_NEVER = 2.0


class Xtc:
    """Excludes top choices, or not: the host decides, from seed and position, so that a step without costs nothing."""

    def __init__(self, settings: Sequence[Sampling], vocab_size: int) -> None:
        self._rows = [(row.xtc_probability, row.seed or 0, row.xtc_threshold) for row in settings]

    def __call__(self, scores: Scores, now: Now) -> None:
        thresholds = [
            threshold if probability > 0 and uniform(seed, position) < probability else _NEVER
            for (probability, seed, threshold), position in zip(self._rows, now.positions, strict=True)
        ]
        if min(thresholds) == _NEVER:
            return
        logits = scores.logits
        likely = scores.probabilities(logits, logits.max(axis=-1, keepdims=True)) >= column(thresholds)
        least = mx.where(likely, logits, mx.inf).min(axis=-1, keepdims=True)
        scores.hide(logits > least)
