"""Logit bias: numbers added to chosen tokens' logits.

The parameter of OpenAI's API, without its bounds; minus infinity forbids a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from core.generation.processors.scores import Scores
from core.generation.processors.stage import Now
from core.generation.sampling import Sampling


class LogitBias:
    """Adds every row's biases."""

    def __init__(self, settings: Sequence[Sampling], vocab_size: int) -> None:
        self._bias = mx.stack([_dense(row.logit_bias, vocab_size) for row in settings])

    def __call__(self, scores: Scores, now: Now) -> None:
        scores.logits = scores.logits + self._bias


def _dense(bias: object, vocab_size: int) -> mx.array:
    assert hasattr(bias, "items")
    dense = mx.zeros((vocab_size,), dtype=mx.float32)
    if bias:
        ids, values = zip(*bias.items(), strict=True)  # type: ignore[attr-defined]
        dense[mx.array(ids)] = mx.array(values, dtype=mx.float32)
    return dense
