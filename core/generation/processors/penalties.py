"""Repetition, frequency and presence penalties: tokens that occurred, in prompt or output, become less likely.

Repetition divides positive logits and multiplies negative ones (Keskar et al., 2019, https://arxiv.org/abs/1909.05858,
with transformers' care for the sign); frequency and presence subtract (the parameters of OpenAI's API). As in
transformers and llama.cpp, the prompt counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from core.generation.processors.history import History, without
from core.generation.processors.scores import Scores, column
from core.generation.processors.stage import Now
from core.generation.sampling import Sampling


class Penalties:
    """All three at once, repetition first, as in llama.cpp."""

    def __init__(self, settings: Sequence[Sampling], vocab_size: int) -> None:
        self._repetition = _columns([row.repetition_penalty for row in settings], 1.0)
        self._frequency = _columns([row.frequency_penalty for row in settings], 0.0)
        self._presence = _columns([row.presence_penalty for row in settings], 0.0)

    def __call__(self, scores: Scores, now: Now) -> None:
        assert now.counts is not None
        logits, counts = scores.logits, now.counts.array
        occurred = counts > 0
        if self._repetition is not None:
            weaker = mx.where(logits < 0, logits * self._repetition, logits / self._repetition)
            logits = mx.where(occurred, weaker, logits)
        if self._frequency is not None:
            logits = logits - counts * self._frequency
        if self._presence is not None:
            logits = mx.where(occurred, logits - self._presence, logits)
        scores.logits = logits


class Counts:
    """How often each token occurred in the last tokens of each row, kept up to date as tokens come.

    Attributes:
        array: float32 ``[rows, vocab]``.
    """

    def __init__(self, vocab_size: int) -> None:
        self.array = mx.zeros((0, vocab_size), dtype=mx.float32)
        self._contexts: list[int | None] = []

    @property
    def contexts(self) -> Sequence[int | None]:
        """How many of the last tokens are counted in each row; None: all."""
        return self._contexts

    def join(self, ids: Sequence[int], context: int | None) -> None:
        """Appends a row."""
        row = mx.zeros((1, self.array.shape[1]), dtype=mx.float32)
        counted = list(ids if context is None else ids[-context:])
        if counted:
            row = row.at[0, mx.array(counted, dtype=mx.int32)].add(1.0)
        self.array = mx.concatenate([self.array, row])
        self._contexts.append(context)

    def leave(self, row: int) -> None:
        """Removes a row; later ones move up."""
        self.array = without(self.array, row)
        del self._contexts[row]

    def record(self, ids: mx.array, history: History | None) -> None:
        """Counts one more id ``[rows]``, and no longer those that fall out of a row's context.

        Args:
            history: before the ids are recorded there; needed where a context is bounded.
        """
        rows = mx.arange(len(self._contexts))
        self.array = self.array.at[rows, ids].add(1.0)
        if history is None:
            return
        falling = [
            length - context if context is not None and length >= context else -1
            for context, length in zip(self._contexts, history.lengths, strict=True)
        ]
        if max(falling) < 0:
            return
        places = column([max(place, 0) for place in falling], mx.int32)
        fallen = mx.maximum(mx.take_along_axis(history.tokens, places, axis=1)[:, 0], 0)
        self.array = self.array.at[rows, fallen].add(mx.array([-1.0 if place >= 0 else 0.0 for place in falling]))


def _columns(values: Sequence[float], neutral: float) -> mx.array | None:
    return None if all(value == neutral for value in values) else column(values)
