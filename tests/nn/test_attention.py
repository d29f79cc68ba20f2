"""A subclass of ``Attention`` that treats its projections before they are split into heads."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from core.config.rope import RopeParameters
from core.nn import Attention, Cache, CacheSpec, RoPE, Step
from core.nn.step import StepPlan

HEADS, KV_HEADS, DIM, HIDDEN = 4, 2, 8, 16
PARTS = ("q_proj", "k_proj", "v_proj")


class Scaled(Attention):
    """Queries, keys and values times 2, 3 and 5."""

    def __call__(self, x: mx.array, step: Step) -> mx.array:
        q, k, v = self.qkv_proj(x)
        return self.attend(2 * q, 3 * k, 5 * v, step)


def build(kind: type[Attention]) -> Attention:
    rope = RoPE(DIM, RopeParameters(rope_theta=100.0), 64)
    return kind(HIDDEN, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=DIM, rope=rope)


@pytest.mark.parametrize("groups", [[PARTS], [PARTS[:1], PARTS[1:]]])
def test_treating_the_projections_is_treating_their_matrices(groups: list[tuple[str, ...]]) -> None:
    mx.random.seed(3)
    scaled, plain = build(Scaled), build(Attention)
    scaled.qkv_proj.regroup(groups)
    rows = {2.0: HEADS * DIM, 3.0: KV_HEADS * DIM, 5.0: KV_HEADS * DIM}
    factors = mx.concatenate([mx.full((count, 1), factor) for factor, count in rows.items()])
    weight = mx.concatenate([linear.weight for linear in scaled.qkv_proj.linears])
    plain.qkv_proj.linears[0].weight = weight * factors
    plain.o_proj.weight = scaled.o_proj.weight
    x = mx.random.normal((2, 7, HIDDEN))
    answers = []
    for attention in (scaled, plain):
        cache = Cache((CacheSpec.full(KV_HEADS, DIM),), 2)
        pieces = []
        for piece in (x[:, :5], x[:, 5:]):
            (step,) = StepPlan(2, piece.shape[1], 1, cache).steps()
            pieces.append(attention(piece, step))
            cache.commit()
        answers.append(np.array(mx.concatenate(pieces, axis=1)))
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-5)
