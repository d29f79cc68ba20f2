"""Prompts of bfloat16 models on processors with tiles: attention, gates and packed weights, rounded to bfloat16."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from core.nn import Decoder
from core.nn.groups import CacheGroups
from tests.cpu.models import TILES, assert_same, by_library, by_mlx, decoder, needs_library, quantize, tokens

pytestmark = [
    needs_library,
    pytest.mark.skipif(not TILES, reason="this processor has no tiles"),
]

ROUNDED = 2e-2
"""Of the largest logit: two blocks of products, each number off by up to 1/512 of itself."""


def pair(**sizes: Any) -> tuple[Decoder, Decoder]:
    """A bfloat16 model, and one of the same weights in float32, which MLX computes without rounding."""
    model, wide = decoder(**sizes), decoder(**sizes)
    model.set_dtype(mx.bfloat16)
    wide.update(model.parameters())
    wide.set_dtype(mx.float32)
    return model, wide


def same_in_chunks(model: Decoder, wide: Decoder, counts: list[int], **limits: int) -> None:
    ours, theirs = model.make_cache(**limits), wide.make_cache(**limits)
    for seed, count in enumerate(counts):
        ids = tokens(model, 1, count, seed)
        assert_same(by_library(model, ids, ours), by_mlx(wide, ids, theirs), ROUNDED)


@pytest.mark.parametrize("dim", [16, 32, 48, 64, 96, 128, 256, 288])
def test_heads_of_any_size(dim: int) -> None:
    """Those that are no multiple of 32, or larger than 256, are computed in float32."""
    same_in_chunks(*pair(head_dim=dim), [70, 1, 9])


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (14, 1), (48, 1), (33, 3)])
def test_items_of_any_number_of_rows(heads: int, kv_heads: int) -> None:
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 32}
    same_in_chunks(*pair(**sizes), [3, 130, 17, 1, 64])


@pytest.mark.parametrize("window", [1, 5, 64, 100])
def test_windows(window: int) -> None:
    same_in_chunks(*pair(window=window, head_dim=32), [200, 30, 1, 65])


@pytest.mark.parametrize(("most", "kept"), [(40, 3), (70, 65), (64, 0)])
def test_first_and_last_tokens(most: int, kept: int) -> None:
    same_in_chunks(*pair(head_dim=64), [150, 1, 40], max_kv_tokens=most, kept_tokens=kept)


def test_rows_of_different_lengths_beside_rows_that_decode() -> None:
    model, wide = pair(head_dim=32)
    ours, theirs = (one.make_cache(3) for one in (model, wide))
    ids = tokens(model, 3, 90)
    lengths = [90, 20, 65]
    found, expected = by_library(model, ids, ours, lengths), by_mlx(wide, ids, theirs, lengths)
    for row, length in enumerate(lengths):
        assert_same(found[row, :length], expected[row, :length], ROUNDED)
    caches = [(mine, one.make_cache()) for mine, one in ((ours, model), (theirs, wide))]
    ids = tokens(model, 3 + 40, 1, 1)
    found, expected = (
        run(one, ids, CacheGroups(list(own), [1, 40], [None, None]))
        for run, one, own in ((by_library, model, caches[0]), (by_mlx, wide, caches[1]))
    )
    assert_same(found, expected, ROUNDED)


@pytest.mark.parametrize("intermediate", [48, 80, 96, 1056])
@pytest.mark.parametrize("experts", [0, 3])
def test_gates(intermediate: int, experts: int) -> None:
    """Sizes that are multiples of 16 take gate and up side by side, unless an expert has few tokens."""
    same_in_chunks(*pair(intermediate_size=intermediate, experts=experts), [100, 12])


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 32), (8, 128), (6, 64)])
@pytest.mark.parametrize("columns", [128, 384])
def test_packed_weights(bits: int, group: int, columns: int) -> None:
    """Numbers of 4 and 8 bits become bfloat16 in registers."""
    model, wide = pair(hidden_size=columns, intermediate_size=256, head_dim=32, layers=1)
    for one in (model, wide):
        quantize(one, bits=bits, group=group)
    wide.update(model.parameters())
    wide.set_dtype(mx.float32)
    same_in_chunks(model, wide, [40, 33])


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_gates_far_from_zero(scale: float) -> None:
    model, wide = pair(layers=1)
    for one in (model, wide):
        linear = one.layers[0].mlp.gate_up_proj.linears[0]
        linear.weight = linear.weight * scale
    same_in_chunks(model, wide, [40])


def test_biases() -> None:
    model, wide = pair(layers=1)
    for one in (model, wide):
        attention, mlp = one.layers[0].self_attn, one.layers[0].mlp
        for seed, linear in enumerate([attention.qkv_proj.linears[0], attention.o_proj, mlp.down_proj]):
            linear.bias = mx.random.normal((linear.weight.shape[0],), key=mx.random.key(seed))
    same_in_chunks(model, wide, [20, 16])


def test_a_row_that_is_no_number_stays_alone() -> None:
    model, _ = pair(head_dim=32, layers=1)
    weight = np.array(model.embed_tokens.weight.astype(mx.float32))
    weight[5, 3] = np.nan
    model.embed_tokens.weight = mx.array(weight).astype(mx.bfloat16)
    ids = np.ones((2, 40), dtype=np.int32)
    ids[0, 20] = 5
    logits = by_library(model, mx.array(ids), model.make_cache(2))
    assert np.isfinite(logits[1]).all()
    assert np.isnan(logits[0, 20:]).all()
