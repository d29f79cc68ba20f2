"""Passes in the CPU library agree with MLX's, and with the definition of a block in float64."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.cpu_pass import forward
from core.kernels import inference
from core.nn import Decoder
from core.nn.quantized import QuantizedLinear
from tests.cpu import definition
from tests.cpu.models import (
    BOUND,
    as_numbers,
    assert_same,
    by_library,
    by_mlx,
    decoder,
    needs_library,
    quantize,
    tokens,
)

pytestmark = needs_library

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.5 * i for i in range(8)],
        "original_max_position_embeddings": 24,
    },
}


def same_in_steps(model: Decoder, counts: list[int], batch: int = 1) -> None:
    """Both ways read chunks of these sizes, one after the other."""
    ours, theirs = model.make_cache(batch), model.make_cache(batch)
    for seed, count in enumerate(counts):
        ids = tokens(model, batch, count, seed)
        assert_same(by_library(model, ids, ours), by_mlx(model, ids, theirs))


@settings(max_examples=30)
@given(st.data())
def test_models_of_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    kv_heads = draw(st.integers(1, 3), "key heads")
    experts = draw(st.sampled_from([0, 0, 2, 5, 20]), "experts")
    model = decoder(
        draw(st.integers(0, 99), "seed"),
        experts=experts,
        chosen=draw(st.integers(1, max(1, experts)), "chosen"),
        window=draw(st.sampled_from([None, 1, 5, 33]), "window"),
        layers=draw(st.integers(1, 2), "layers"),
        vocab_size=draw(st.integers(2, 131), "vocabulary"),
        hidden_size=draw(st.integers(17, 70), "hidden"),
        intermediate_size=draw(st.integers(1, 90), "intermediate"),
        num_key_value_heads=kv_heads,
        num_attention_heads=kv_heads * draw(st.sampled_from([1, 2, 3, 7, 8]), "sharing"),
        head_dim=2 * draw(st.integers(1, 20), "half of a head"),
        tie_word_embeddings=draw(st.booleans(), "tied"),
    )
    same_in_steps(model, draw(st.lists(st.integers(1, 40), min_size=1, max_size=5), "chunks"), draw(st.integers(1, 3)))


@pytest.mark.parametrize("dim", [8, 16, 24, 32, 40, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("sharing", [1, 3, 8])
def test_heads_of_any_size(dim: int, sharing: int) -> None:
    model = decoder(head_dim=dim, num_key_value_heads=2, num_attention_heads=2 * sharing, layers=1)
    same_in_steps(model, [3, 70, 1, 1], batch=2)


@pytest.mark.parametrize("sharing", [47, 48, 49, 71])
def test_many_query_heads_of_one_key_head(sharing: int) -> None:
    """More of them than the library attends to at once are MLX's."""
    model = decoder(head_dim=8, num_key_value_heads=1, num_attention_heads=sharing, layers=1)
    if sharing <= 48:
        same_in_steps(model, [5, 1])
    else:
        assert "query heads" in str(forward.reason(model))
        with inference():
            found = as_numbers(model(tokens(model, 1, 5), model.make_cache()))
        assert_same(found, by_mlx(model, tokens(model, 1, 5), model.make_cache()))


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_embeddings(kind: str) -> None:
    """The model was trained for 24 tokens, so that a sequence passes whatever changes there."""
    model = decoder(rope_parameters=ROPES[kind], max_position_embeddings=24 if kind == "dynamic" else 96, window=16)
    same_in_steps(model, [20, 1, 1, 1, 1, 1, 30, 1], batch=2)


@pytest.mark.parametrize("chosen", [1, 2, 7])
def test_experts_that_score_alike(chosen: int) -> None:
    """The earlier one is chosen among equals, on both ways."""
    model = decoder(experts=7, chosen=chosen)
    for layer in model.layers:
        gate = layer.block_sparse_moe.gate
        gate.weight = mx.round(gate.weight * 0) + mx.array([0, 1, 1, 0, 1, 0, 1])[:, None] * mx.ones((7, 48))
    same_in_steps(model, [9, 1])


MODES = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)] + [("mxfp4", 4, 32)]


@pytest.mark.parametrize(("mode", "bits", "group"), MODES)
def test_quantized_weights(mode: str, bits: int, group: int) -> None:
    model = decoder(hidden_size=128, intermediate_size=256, head_dim=32, layers=1)
    quantize(model, group=group, bits=bits, mode=mode)
    assert isinstance(model.layers[0].mlp.down_proj, QuantizedLinear)
    same_in_steps(model, [3, 13, 1])


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_quantized_experts(mode: str) -> None:
    model = decoder(hidden_size=64, intermediate_size=96, experts=5, layers=1)
    quantize(model, mode=mode)
    same_in_steps(model, [3, 40, 1])


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("experts", [0, 4])
def test_weights_of_two_bytes(dtype: mx.Dtype, experts: int) -> None:
    """Where rows are few, activations stay float32, which MLX's are with float32 copies of these weights."""
    model, wide = decoder(experts=experts), decoder(experts=experts)
    model.set_dtype(dtype)
    wide.update(model.parameters())
    wide.set_dtype(mx.float32)
    ours, theirs = model.make_cache(), wide.make_cache()
    for seed, (count, bound) in enumerate([(1, BOUND), (3, BOUND), (30, 2e-2), (1, 2e-2)]):
        ids = tokens(model, 1, count, seed)
        assert_same(by_library(model, ids, ours), by_mlx(wide, ids, theirs), bound)


def test_biases() -> None:
    model = decoder(layers=1)
    for linear in (model.layers[0].self_attn.qkv_proj.linears[0], model.layers[0].self_attn.o_proj, model.lm_head):
        linear.bias = mx.random.normal((linear.weight.shape[0],), key=mx.random.key(7))
    same_in_steps(model, [2, 20, 1])


@pytest.mark.parametrize("scale", [30.0, 300.0, 1e4])
def test_gates_far_from_zero(scale: float) -> None:
    """e**x has a largest argument: silu(-100) is 0."""
    model = decoder(layers=1)
    linear = model.layers[0].mlp.gate_up_proj.linears[0]
    linear.weight = linear.weight * scale
    same_in_steps(model, [1, 2, 40])


@pytest.mark.parametrize("dtype", [mx.uint8, mx.int16, mx.uint16, mx.int32, mx.uint32, mx.int64, mx.uint64])
def test_ids_of_any_type_and_stride(dtype: mx.Dtype) -> None:
    model = decoder(layers=1)
    ids = tokens(model, 2, 12).astype(dtype)
    for odd in (ids, ids[:, ::3], ids[:1, ::2], ids[::-1], ids.T, mx.broadcast_to(ids[:1, :1], (2, 9))):
        rows = odd.shape[0]
        found = by_library(model, odd, model.make_cache(rows))
        assert_same(found, by_mlx(model, odd, model.make_cache(rows)))


def test_ids_beyond_the_vocabulary_read_no_memory() -> None:
    model = decoder(layers=1)
    ids = mx.array([[1, 97, 2**31 - 1, -(2**31), -1]])
    assert np.isfinite(by_library(model, ids, model.make_cache())).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_stay_visible(bad: float) -> None:
    """A broken weight shows in the logits of its token, and in nobody else's row."""
    model = decoder(layers=1)
    weight = np.array(model.embed_tokens.weight)
    weight[5, 3] = bad
    model.embed_tokens.weight = mx.array(weight)
    logits = by_library(model, mx.array([[1, 2, 5], [1, 2, 3]]), model.make_cache(2))
    assert np.isnan(logits[0, 2]).any()
    assert np.isfinite(logits[1]).all()


def test_a_head_of_another_width_is_mlxs_error() -> None:
    model = decoder()
    by_library(model, tokens(model, 1, 2), model.make_cache())
    with inference(), pytest.raises(ValueError, match="size"):
        mx.eval(model.head(mx.zeros((1, 3))))


@pytest.mark.parametrize("experts", [0, 5])
@pytest.mark.parametrize("window", [None, 4])
def test_one_block_in_float64(experts: int, window: int | None) -> None:
    """Against NumPy, which knows nothing of MLX."""
    model = decoder(experts=experts, window=window, layers=1, num_attention_heads=6, num_key_value_heads=2)
    ids = tokens(model, 1, 19)
    expected = definition.logits(model, ids[0].tolist(), window)  # type: ignore[arg-type]
    cache = model.make_cache()
    found = np.concatenate([by_library(model, ids[:, a:b], cache) for a, b in [(0, 1), (1, 13), (13, 16), (16, 19)]], 1)
    assert_same(found[0], expected)
