"""Attention as it is defined, token by token in float64, beside what caches make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from core.nn import Cache
from core.nn.step import StepPlan

HEADS, KV_HEADS = 4, 2

Sees = Callable[[int, int], bool]
"""Whether a query at the first position sees the key at the second, which is not behind it."""


def last(window: int | None) -> Sees:
    """A sliding window's rule."""
    return lambda query, key: window is None or key > query - window


def first_and_last(kept: int, tokens: int) -> Sees:
    """The rule of ``max_kv_tokens``: the first ``kept``, and the last ``tokens - kept``."""
    return lambda query, key: key < kept or key > query - (tokens - kept)


@dataclass
class Row:
    """One sequence's keys and values so far, as plain numbers."""

    keys: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)

    def attend(self, query: np.ndarray, position: int, sees: Sees) -> np.ndarray:
        """Attention of one query ``[heads, dim]`` at ``position``, in float64."""
        seen = [key for key in range(position + 1) if sees(position, key)]
        keys = np.stack([self.keys[key] for key in seen]).astype(np.float64)
        values = np.stack([self.values[key] for key in seen]).astype(np.float64)
        heads, dim = query.shape
        out = np.empty((heads, values.shape[-1]))
        for head in range(heads):
            shared = head * KV_HEADS // heads
            scores = keys[:, shared] @ query[head].astype(np.float64) * dim**-0.5
            weights = np.exp(scores - scores.max())
            out[head] = weights / weights.sum() @ values[:, shared]
        return out

    def cut(self, length: int) -> None:
        """Forgets what lies behind ``length``."""
        del self.keys[length:], self.values[length:]

    def copy(self) -> Row:
        return Row(list(self.keys), list(self.values))


def take_step(
    cache: Cache,
    rows: list[Row],
    seq: int,
    counts: list[int] | None,
    sees: Sees,
    rng: np.random.Generator,
    *,
    dim: int = 8,
    window: int | None = None,
    stored: Callable[[np.ndarray], np.ndarray] = lambda floats: floats,
    atol: float = 2e-6,
) -> None:
    """Feeds random tokens to the cache and to the rows, and compares what each real token attends to.

    Args:
        window: as the block tells ``Step.attend``.
        stored: what the cache makes of keys and values.
    """
    batch = len(rows)
    q = rng.standard_normal((batch, HEADS, seq, dim), dtype=np.float32)
    k, v = (rng.standard_normal((batch, KV_HEADS, seq, dim), dtype=np.float32) for _ in range(2))
    step = StepPlan(batch, seq, 1, cache, counts).steps()[0]
    starts = list(cache.lengths)
    assert step.positions.tolist() == starts
    out = np.array(step.attend(mx.array(q), mx.array(k), mx.array(v), scale=dim**-0.5, window=window))
    cache.commit()
    k, v = stored(k), stored(v)
    for b, row in enumerate(rows):
        for t in range(seq if counts is None else counts[b]):
            row.keys.append(k[b, :, t])
            row.values.append(v[b, :, t])
            expected = row.attend(q[b, :, t], starts[b] + t, sees)
            np.testing.assert_allclose(out[b, :, t], expected, atol=atol, rtol=1e-5)
