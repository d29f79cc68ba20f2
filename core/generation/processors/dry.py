"""DRY, "don't repeat yourself": a token that would extend a repetition becomes less likely, the more the longer it is.

As p-e-w described it (https://github.com/oobabooga/text-generation-webui/pull/5677) and llama.cpp implements it: where
the last n ≥ ``dry_allowed_length`` tokens occurred before, the token that followed them then loses
``dry_multiplier * dry_base ** (n - dry_allowed_length)``, for the largest such n. No repetition goes across a breaker,
and a breaker is never penalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from core.generation.processors.history import History, padded, without
from core.generation.processors.scores import Scores, column
from core.generation.processors.stage import Now
from core.generation.sampling import Sampling

_LARGEST_LOG = 80.0  # of a power in float32
_LONGEST = 2**30  # tokens; of no repetition are there more


class Dry:
    """Subtracts every row's penalties."""

    def __init__(self, settings: Sequence[Sampling], vocab_size: int) -> None:
        self._multiplier = column([row.dry_multiplier for row in settings])
        self._base = column([row.dry_base for row in settings])
        self._allowed = column([min(row.dry_allowed_length, _LONGEST) for row in settings], mx.int32)
        logs = [math.log(row.dry_base) for row in settings]
        self._most = column([min(2.0**30, _LARGEST_LOG / log) if log else 2.0**30 for log in logs])
        self._contexts = [row.dry_context for row in settings]

    def __call__(self, scores: Scores, now: Now) -> None:
        assert now.history is not None
        assert now.repetitions is not None
        tokens, lengths = now.history.tokens, now.history.lengths
        rows, capacity = tokens.shape
        repeated = now.repetitions.lengths
        if any(context is not None for context in self._contexts):
            firsts = [
                0 if context is None else max(0, length - context)
                for context, length in zip(self._contexts, lengths, strict=True)
            ]
            repeated = mx.minimum(repeated, mx.arange(1, capacity + 1, dtype=mx.int32) - column(firsts, mx.int32))
        beyond = mx.minimum((repeated - self._allowed).astype(mx.float32), self._most)
        penalties = mx.where(repeated >= self._allowed, self._multiplier * mx.power(self._base, beyond), 0.0)
        following = mx.maximum(tokens[:, 1:], 0)
        worst = mx.zeros_like(scores.logits).at[mx.arange(rows)[:, None], following].maximum(penalties[:, :-1])
        breakers = now.repetitions.breakers
        scores.logits = scores.logits - (worst if breakers is None else mx.where(breakers, 0.0, worst))


class Repetitions:
    """For each place in a row, how many tokens up to it are also the row's last ones.

    Attributes:
        lengths: int32 ``[rows, capacity]``, as wide as the history; 0 at the last token itself and behind it.
        breakers: bool ``[rows, vocab]``: tokens that no repetition goes across; None where no row has any.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.lengths = mx.zeros((0, 1), dtype=mx.int32)
        self.breakers: mx.array | None = None

    def join(self, ids: Sequence[int], breakers: Sequence[int], capacity: int) -> None:
        """Appends a row of a history that has this capacity now."""
        found = _repetitions(ids, frozenset(breakers))
        row = mx.array([*found, *[0] * (capacity - len(found))], dtype=mx.int32)[None]
        rows = self.lengths.shape[0]
        self.lengths = mx.concatenate([padded(self.lengths, capacity, 0), row])
        if breakers or self.breakers is not None:
            before = mx.zeros((rows, self._vocab_size), dtype=mx.bool_) if self.breakers is None else self.breakers
            mask = mx.zeros((1, self._vocab_size), dtype=mx.bool_)
            if breakers:
                mask[0, mx.array(list(breakers), dtype=mx.int32)] = True
            self.breakers = mx.concatenate([before, mask])

    def leave(self, row: int) -> None:
        """Removes a row; later ones move up."""
        self.lengths = without(self.lengths, row)
        if self.breakers is not None:
            self.breakers = without(self.breakers, row)

    def record(self, ids: mx.array, history: History) -> None:
        """Compares with one id ``[rows]`` more.

        Args:
            history: before the id is recorded there.
        """
        token = ids.astype(mx.int32)[:, None]
        same = history.tokens == token
        if self.breakers is not None:
            same = same & ~mx.take_along_axis(self.breakers, token, axis=1)
        one_shorter = mx.pad(padded(self.lengths, history.tokens.shape[1], 0)[:, :-1], [(0, 0), (1, 0)])
        self.lengths = mx.where(same, one_shorter + 1, 0)

    def fit(self, capacity: int) -> None:
        """Follows the history when it has grown."""
        self.lengths = padded(self.lengths, capacity, 0)


def _repetitions(ids: Sequence[int], breakers: frozenset[int]) -> list[int]:
    """``lengths`` of one row, in linear time: the Z-algorithm (Gusfield, 1997) from the end."""
    backwards = list(reversed(ids))
    count = len(backwards)
    limit = next((i for i, token in enumerate(backwards) if token in breakers), count)
    matches = [0] * count
    left = right = 0
    for i in range(1, count):
        length = min(right - i, matches[i - left]) if i < right else 0
        while i + length < count and backwards[length] == backwards[i + length]:
            length += 1
        matches[i] = length
        if i + length > right:
            left, right = i, i + length
    return [min(length, limit) for length in reversed(matches)]
