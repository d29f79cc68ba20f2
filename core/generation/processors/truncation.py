"""Truncation: top-k, top-p, min-p and typical-p hide the tokens that are not to be chosen.

Top-k, top-p and min-p are thresholds on the logits, found in their sorted values; tokens that are equal to the last one
kept are kept too, so that nothing depends on the order in which a sort leaves ties. At least the likeliest stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from core.generation.processors.scores import Scores, column
from core.generation.processors.stage import Now
from core.generation.sampling import HOTTEST, Sampling

_ALL = 2.0  # a sum that probabilities do not reach, however they round
_LEAST = 1e-37  # of float32: a smaller sum could be 0 on a device, which not even the first token is below


class Temperature:
    """From here on, probabilities are those of the logits divided by the temperature."""

    def __init__(self, settings: Sequence[Sampling], vocab_size: int) -> None:
        self._temperature = column([1.0 if row.greedy else min(row.temperature, HOTTEST) for row in settings])

    def __call__(self, scores: Scores, now: Now) -> None:
        scores.temperature = self._temperature


class TopK:
    """Keeps the k largest (Fan et al., 2018, https://arxiv.org/abs/1805.04833)."""

    def __init__(self, settings: Sequence[Sampling], vocab_size: int) -> None:
        kept = [row.top_k if row.uses("top_k") else vocab_size for row in settings]
        self._first = column([vocab_size - min(k, vocab_size) for k in kept], mx.int32)

    def __call__(self, scores: Scores, now: Now) -> None:
        scores.keep(mx.take_along_axis(scores.ascending, self._first, axis=-1))


class TopP:
    """Keeps the nucleus: the fewest tokens whose probabilities reach p (Holtzman et al., 2020, https://arxiv.org/abs/1904.09751)."""

    def __init__(self, settings: Sequence[Sampling], vocab_size: int) -> None:
        self._mass = column([max(row.top_p, _LEAST) if row.uses("top_p") else _ALL for row in settings])

    def __call__(self, scores: Scores, now: Now) -> None:
        ascending = scores.ascending
        probabilities = scores.probabilities(ascending, ascending[:, -1:])
        above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
        scores.keep(mx.where(above < self._mass, ascending, mx.inf).min(axis=-1, keepdims=True))


class MinP:
    """Keeps tokens of at least this share of the largest probability (Nguyen et al., 2025, https://arxiv.org/abs/2407.01082)."""

    def __init__(self, settings: Sequence[Sampling], vocab_size: int) -> None:
        shares = [math.log(row.min_p) if row.uses("min_p") else -math.inf for row in settings]
        self._log_share = column(shares)

    def __call__(self, scores: Scores, now: Now) -> None:
        distance = self._log_share if scores.temperature is None else self._log_share * scores.temperature
        scores.keep(scores.logits.max(axis=-1, keepdims=True) + distance)


class TypicalP:
    """Keeps the tokens whose surprise is closest to the entropy, up to a probability (Meister et al., 2023, https://arxiv.org/abs/2202.00666)."""

    def __init__(self, settings: Sequence[Sampling], vocab_size: int) -> None:
        self._mass = column([max(row.typical_p, _LEAST) if row.uses("typical_p") else _ALL for row in settings])

    def __call__(self, scores: Scores, now: Now) -> None:
        logits = scores.logits
        shifted = logits - logits.max(axis=-1, keepdims=True)
        if scores.temperature is not None:
            shifted = shifted / scores.temperature
        logs = shifted - mx.logsumexp(shifted, axis=-1, keepdims=True)
        probabilities = mx.softmax(shifted, axis=-1)
        # A running sum, whose rounding does not depend on how many rows there are, as a reduction's may.
        terms = mx.where(probabilities > 0, probabilities * logs, 0.0)
        entropy = -mx.cumsum(terms, axis=-1)[:, -1:]
        strangeness = mx.abs(logs + entropy)
        order = mx.argsort(strangeness, axis=-1)
        before = mx.cumsum(mx.take_along_axis(probabilities, order, axis=-1), axis=-1, inclusive=False)
        kept = mx.where(before < self._mass, mx.take_along_axis(strangeness, order, axis=-1), -mx.inf)
        scores.hide(strangeness > kept.max(axis=-1, keepdims=True))
