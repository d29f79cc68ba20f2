"""Choosing the next token from logits.

Filters apply in the order of transformers' processors: temperature, top-k, top-p. Random numbers depend only on the
seed and on the token's position, and MLX's global random state is left alone.
"""

from __future__ import annotations

import operator
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import mlx.core as mx

from core.errors import UsageError

Sampler = Callable[[mx.array, int], mx.array]
"""Logits ``[batch, vocab]`` and the position of the token to choose → uint32 ids ``[batch]``."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: divisor of the logits; 0 takes the most likely token.
        top_p: keep the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        seed: of the random numbers; None draws one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def checked(self) -> Self:
        """Itself, with a seed drawn where it needs one.

        Raises:
            UsageError: a value is out of range.
        """
        try:
            whole = replace(
                self, top_k=operator.index(self.top_k), seed=None if self.seed is None else operator.index(self.seed)
            )
        except TypeError:
            raise UsageError("top_k and seed must be integers", found=f"{self.top_k!r}, {self.seed!r}") from None
        if not 0 <= self.temperature < float("inf"):
            raise UsageError("temperature is out of range", expected="0 or more", found=self.temperature)
        if not 0 < self.top_p <= 1:
            raise UsageError("top_p is out of range", expected="more than 0, at most 1", found=self.top_p)
        if self.top_k < 0:
            raise UsageError("top_k is out of range", expected="0 (all) or more", found=self.top_k)
        if self.temperature > 0 and self.seed is None:
            return replace(whole, seed=secrets.randbits(32))
        return whole

    def sampler(self) -> Sampler:
        """The function that chooses, for settings that are ``checked``."""
        return _greedy if self.temperature == 0 else self._sample

    def _sample(self, logits: mx.array, position: int) -> mx.array:
        logits = logits.astype(mx.float32)
        # The largest becomes 0 first, so that a tiny temperature overflows to minus infinity and not to infinity.
        logits = (logits - logits.max(axis=-1, keepdims=True)) / self.temperature
        ids = None
        if 0 < self.top_k < logits.shape[-1]:
            ids = mx.argpartition(-logits, kth=self.top_k - 1, axis=-1)[..., : self.top_k]
            logits = mx.take_along_axis(logits, ids, axis=-1)
        if self.top_p < 1:
            order = mx.argsort(-logits, axis=-1)
            logits = _nucleus(mx.take_along_axis(logits, order, axis=-1), self.top_p)
            ids = order if ids is None else mx.take_along_axis(ids, order, axis=-1)
        assert self.seed is not None
        choice = mx.random.categorical(logits, key=_key(self.seed, position))
        return choice if ids is None else mx.take_along_axis(ids, choice[..., None], axis=-1).squeeze(-1)


def _greedy(logits: mx.array, position: int) -> mx.array:
    return mx.argmax(logits, axis=-1)


def _nucleus(descending: mx.array, top_p: float) -> mx.array:
    """Hides logits, sorted descending, behind which the probability before them already reaches ``top_p``."""
    probabilities = mx.softmax(descending, axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    return mx.where(before < top_p, descending, -mx.inf)


def _key(seed: int, position: int) -> mx.array:
    """A random key that depends on both numbers in every bit (the finaliser of SplitMix64, Steele et al., 2014)."""
    z = (seed + (position + 1) * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return mx.random.key(z ^ (z >> 31))
