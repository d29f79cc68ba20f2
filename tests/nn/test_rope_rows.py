"""Many rows, each at its own position, rotate as the definition says, also where one call cannot take them all."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import core.nn.rope
from core.config.rope import RopeParameters
from core.nn.rope import RoPE

THETA = 100.0


def by_definition(x: np.ndarray, positions: np.ndarray, dims: int) -> np.ndarray:
    """Float64; pairs are (i, i + dims / 2)."""
    half = dims // 2
    tokens = positions[:, None] + np.arange(x.shape[2])
    angles = (tokens[..., None] * THETA ** (-np.arange(half) * 2 / dims))[:, None]
    a, b = x[..., :half], x[..., half:dims]
    turned = np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)
    return np.concatenate([turned, x[..., dims:]], -1)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    ("rows", "heads", "seq", "head_dim", "part"),
    [(300, 2, 1, 8, 1.0), (40, 32, 1, 64, 0.25), (130, 5, 3, 8, 1.0), (257, 8, 1, 32, 1.0), (3, 2, 5, 8, 1.0)],
)
def test_rows_rotate_by_themselves(
    monkeypatch: pytest.MonkeyPatch, split: bool, rows: int, heads: int, seq: int, head_dim: int, part: float
) -> None:
    if split:  # as on CUDA, whatever this is
        monkeypatch.setattr(core.nn.rope, "backend", lambda: "cuda")
    rng = np.random.default_rng(7)
    x = rng.standard_normal((rows, heads, seq, head_dim), dtype=np.float32)
    positions = rng.integers(0, 500, rows)
    rope = RoPE(head_dim, RopeParameters(rope_theta=THETA, partial_rotary_factor=part), 1024)
    found = rope(mx.array(x), mx.array(positions, dtype=mx.int32))
    expected = by_definition(x.astype(np.float64), positions, int(head_dim * part))
    np.testing.assert_allclose(np.array(found), expected, atol=2e-4)
