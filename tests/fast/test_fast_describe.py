"""What a fast step is derived from, and what it refuses; runs anywhere."""

from __future__ import annotations

import dataclasses
import sys

import mlx.core as mx
import mlx.nn as nn
import pytest

from core import nn as core_nn
from core.fast import fast_step, reason
from core.fast.describe import Unsupported, describe
from core.fast.layout import FIELDS, body, header, problem, shared_bytes
from core.generation import generate_tokens

from .models import build, filled

BLOCKS = 132


def shape_of(model):
    return describe(model, filled(model, 1)).shape


@pytest.mark.parametrize("model_type", ["mistral", "mixtral"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_built_in_architectures_are_described(model_type: str, bits: int) -> None:
    model = build(model_type, bits)
    description = describe(model, filled(model, 1))
    shape = description.shape
    assert (shape.layers, shape.hidden, shape.widths) == (3, 512, (bits,) * 5)
    assert (shape.experts, shape.chosen) == ((4, 2) if model_type == "mixtral" else (0, 1))
    assert len(description.fields) == 3 * FIELDS + 8
    assert problem(shape, BLOCKS) is None
    assert shared_bytes(shape, BLOCKS) <= 227 * 1024


def test_text_is_the_same_for_the_same_shape() -> None:
    first, second = shape_of(build()), shape_of(build())
    assert first == second
    assert header(first, BLOCKS) == header(second, BLOCKS)
    assert body(["a", None, "b"]) == body(["a", None, "b"])
    assert header(first, BLOCKS) != header(dataclasses.replace(first, batch=2), BLOCKS)


def test_frequencies_are_those_of_the_rotary_embedding() -> None:
    model = build()
    frequencies = describe(model, filled(model, 1)).frequencies
    x = mx.random.normal((1, 1, 1, 64), key=mx.random.key(1))
    angle = 7 * frequencies
    a, b = x[..., :32], x[..., 32:]
    turned = mx.concatenate([a * mx.cos(angle) - b * mx.sin(angle), b * mx.cos(angle) + a * mx.sin(angle)], axis=-1)
    assert mx.allclose(turned, model.layers[0].self_attn.rope(x, mx.array([7])), atol=1e-5)


def subclassed(model, path: str) -> None:
    """Gives one module of the first layer a subclass of its own class that changes nothing yet."""
    owner, _, name = path.rpartition(".")
    parent = model
    for part in owner.split(".") if owner else ():
        parent = parent[int(part)] if part.isdigit() else getattr(parent, part)
    module = parent[int(name)] if name.isdigit() else getattr(parent, name)
    module.__class__ = type("Changed", (type(module),), {"__call__": lambda self, *a: type(module).__call__(self, *a)})


@pytest.mark.parametrize(
    "path",
    [
        "layers.0",
        "layers.0.input_layernorm",
        "layers.0.self_attn",
        "layers.0.self_attn.qkv_proj",
        "layers.0.self_attn.qkv_proj.linears.0",
        "layers.0.self_attn.o_proj",
        "layers.0.post_attention_layernorm",
        "layers.0.mlp",
        "layers.0.mlp.gate_up_proj",
        "layers.0.mlp.down_proj",
        "norm",
        "embed_tokens",
        "lm_head",
    ],
)
def test_a_subclass_anywhere_takes_the_ordinary_path(path: str) -> None:
    model = build()
    cache = filled(model, 1)
    subclassed(model, path)
    with pytest.raises(Unsupported):
        describe(model, cache)


@pytest.mark.parametrize(
    "path",
    ["block_sparse_moe", "block_sparse_moe.gate", "block_sparse_moe.experts", "block_sparse_moe.experts.down_proj"],
)
def test_a_subclass_among_experts_too(path: str) -> None:
    model = build("mixtral")
    cache = filled(model, 1)
    subclassed(model, f"layers.1.{path}")
    with pytest.raises(Unsupported):
        describe(model, cache)


def test_a_rotary_embedding_of_another_class_too() -> None:
    model = build()
    cache = filled(model, 1)
    rope = model.layers[2].self_attn.rope
    rope.__class__ = type("Changed", (core_nn.RoPE,), {})
    with pytest.raises(Unsupported, match="Changed"):
        describe(model, cache)


def test_layers_that_differ_take_the_ordinary_path() -> None:
    model = build()
    cache = filled(model, 1)
    model.layers[1].self_attn.o_proj = nn.QuantizedLinear.from_linear(model.layers[1].self_attn.o_proj, 64, 4)
    with pytest.raises(Unsupported, match="differ"):
        describe(model, cache)


def test_other_parameters_take_the_ordinary_path() -> None:
    model = build()
    cache = filled(model, 1)
    model.set_dtype(mx.float16)
    with pytest.raises(Unsupported, match="float16"):
        describe(model, cache)


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 5},
        {"head_dim": 96},
        {"kv_heads": 3},
        {"hidden": 640},
        {"vocabulary": 1000},
        {"batch": 2, "experts": 4},
    ],
    ids=str,
)
def test_shapes_that_no_step_takes(change: dict[str, int]) -> None:
    assert problem(dataclasses.replace(shape_of(build()), **change), BLOCKS) is not None


def test_generation_works_without_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "core.fast", None)
    assert len(list(generate_tokens(build(), [1, 2, 3], max_tokens=4))) == 4


def test_no_step_without_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    cache = filled(model, 1)
    with mx.stream(mx.cpu):
        assert reason(model, cache) == "no CUDA device"
        assert fast_step(model, cache) is None


@pytest.mark.parametrize(
    "asked", [{"max_kv_tokens": 40}, {"max_kv_tokens": 40, "kept_tokens": 0}, {"kv_bits": 8}, {"kv_bits": 4}], ids=str
)
def test_caches_with_settings_take_the_ordinary_path(asked: dict[str, int]) -> None:
    model = build()
    cache = model.make_cache(**asked)
    mx.eval(model(mx.array([[1, 2, 3]]), cache), cache.arrays())
    with pytest.raises(Unsupported, match="a cache"):
        describe(model, cache)


def test_a_limit_wider_than_the_window_changes_nothing() -> None:
    model = build()
    cache = model.make_cache(max_kv_tokens=64)
    mx.eval(model(mx.array([[1, 2, 3]]), cache), cache.arrays())
    assert describe(model, cache).shape == shape_of(model)
