"""A model that is changed after the CPU library was told of it computes with what it has now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_map

from core.cpu_pass import forward
from core.kernels import inference
from core.nn import Decoder
from tests.cpu.models import (
    as_numbers,
    assert_computed_alike,
    assert_same,
    decoder,
    needs_library,
    quantize,
    tokens,
)

pytestmark = needs_library

Change = Callable[[Decoder], None]


def _noise(like: mx.array) -> mx.array:
    return mx.random.normal(like.shape, key=mx.random.key(3)) * 0.3


def _attention(model: Decoder) -> Any:
    return model.layers[0].self_attn


def _add_in_place(model: Decoder) -> None:
    _attention(model).o_proj.weight += _noise(_attention(model).o_proj.weight)


def _assign_to_a_slice(model: Decoder) -> None:
    _attention(model).o_proj.weight[3:9] = 0.5


def _scale_a_norm(model: Decoder) -> None:
    model.norm.weight *= 3


def _assign(model: Decoder) -> None:
    model.lm_head.weight = _noise(model.lm_head.weight)


def _update(model: Decoder) -> None:
    model.update(tree_map(lambda array: array + _noise(array), model.parameters()))


def _load(model: Decoder) -> None:
    model.load_weights([(name, array * 0.9) for name, array in tree_flatten(model.parameters())])


def _another_block(model: Decoder) -> None:
    model.layers[1] = decoder(9, hidden_size=64, intermediate_size=32).layers[0]


def _another_epsilon(model: Decoder) -> None:
    model.norm.eps = 0.5


def _freeze(model: Decoder) -> None:
    model.freeze()
    model.eval()


def _lazy(model: Decoder) -> None:
    model.embed_tokens.weight = model.embed_tokens.weight * 2


def _quantize(model: Decoder) -> None:
    quantize(model, group=32, bits=8)


def _half(model: Decoder) -> None:
    """And back: each weight is another object then, with other numbers."""
    model.set_dtype(mx.bfloat16)
    model.set_dtype(mx.float32)


def _bias(model: Decoder) -> None:
    _attention(model).o_proj.bias = mx.ones((64,))


def _experts_per_token(model: Decoder) -> None:
    model.layers[0].block_sparse_moe.num_experts_per_tok = 1


CHANGES = [_add_in_place, _assign_to_a_slice, _scale_a_norm, _assign, _update, _load, _another_block]
CHANGES += [_another_epsilon, _freeze, _lazy, _quantize, _half, _bias]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_computes_with_what_it_has_now(change: Change) -> None:
    model = decoder(hidden_size=64, intermediate_size=96)
    assert_computed_alike(model)
    change(model)
    for _ in range(20):  # the memory of weights that were let go is somebody else's now
        mx.eval(mx.full((64, 64), 7.0))
    assert_computed_alike(model)


def test_a_head_alone_computes_with_what_it_has_now() -> None:
    model = decoder()
    x = mx.random.normal((1, 3, 48))
    with inference():
        before = as_numbers(model.head(x))
        model.lm_head.weight *= 2
        assert_same(as_numbers(model.head(x)), before * 2)
        model.norm.weight *= 0.5
        assert_same(as_numbers(model.head(x)), before)


@pytest.mark.parametrize("transform", [mx.compile, mx.vmap])
def test_a_head_that_is_traced_is_mlxs(transform: Callable[..., Callable[..., mx.array]]) -> None:
    """A traced array has no memory yet."""
    model = decoder()
    x = mx.random.normal((2, 3, 48))
    with inference():
        assert_same(as_numbers(transform(lambda x: model.head(x))(x)), as_numbers(model.head(x)))


def test_a_traced_pass_is_mlxs() -> None:
    model = decoder(layers=1)
    ids = tokens(model, 3, 4)
    with inference():
        found = as_numbers(mx.vmap(lambda row: model.hidden_states(row[None], model.make_cache())[0])(ids))
        expected = as_numbers(model.hidden_states(ids, model.make_cache(3)))
    assert_same(found, expected)


def test_experts_of_a_token() -> None:
    model = decoder(experts=4)
    assert_computed_alike(model)
    _experts_per_token(model)
    assert_computed_alike(model)


class _Adapter(nn.Module):
    """A low-rank adapter in a layer's place."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.a, self.b = mx.random.normal((64, 4)), mx.random.normal((4, 64))

    def __call__(self, x: mx.array) -> mx.array:
        return self.layer(x) + x @ self.a @ self.b


def test_an_adapter_comes_and_goes() -> None:
    """Then MLX computes, and the library again."""
    model = decoder(hidden_size=64)
    assert_computed_alike(model)
    plain = _attention(model).o_proj
    _attention(model).o_proj = _Adapter(plain)
    assert_computed_alike(model, library=False)
    _attention(model).o_proj = plain
    assert_computed_alike(model)
    last = model.layers.pop()
    model.layers.append(_Wrapped(last))
    assert_computed_alike(model, library=False)
    model.layers[-1] = last
    assert_computed_alike(model)


class _Wrapped(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def __call__(self, x: mx.array, step: Any) -> mx.array:
        return self.block(x, step)


def test_a_block_is_added() -> None:
    model = decoder()
    assert_computed_alike(model)
    model.layers.append(decoder(5).layers[0])
    model.set_cache_specs([model._cache_specs[0]] * 3)
    assert_computed_alike(model)


def _odd_block(model: Decoder) -> None:
    model.layers[1] = decoder(9, hidden_size=32).layers[0]


def _odd_norm(model: Decoder) -> None:
    model.norm.weight = mx.ones((3,))


def _odd_head(model: Decoder) -> None:
    model.lm_head.weight = mx.ones((97, 3))


def _odd_bias(model: Decoder) -> None:
    _attention(model).o_proj.bias = mx.ones((3,))


def _odd_projection(model: Decoder) -> None:
    _attention(model).qkv_proj.linears[0].weight = mx.ones((16, 48))


def _odd_down(model: Decoder) -> None:
    model.layers[0].mlp.down_proj.weight = mx.ones((48, 8))


@pytest.mark.parametrize("change", [_odd_block, _odd_norm, _odd_head, _odd_bias, _odd_projection, _odd_down])
def test_parts_that_do_not_fit_are_mlxs_error(change: Change) -> None:
    """The library would read memory that is none of theirs."""
    model = decoder()
    assert_computed_alike(model)
    change(model)
    assert "where" in str(forward.reason(model))
    with inference(), pytest.raises(ValueError):
        mx.eval(model(tokens(model, 1, 3), model.make_cache()))


@pytest.mark.parametrize("experts", [2, 5])
def test_experts_that_the_router_does_not_know(experts: int) -> None:
    model = decoder(experts=4, layers=1)
    moe = model.layers[0].block_sparse_moe
    moe.experts.down_proj.weight = mx.ones((experts, 48, 80))
    assert "experts" in str(forward.reason(model))


def test_refused_twice_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that MLX computes does not pay for a description at each step."""
    model = decoder()
    model.layers[-1] = _Wrapped(model.layers[-1])
    asked: list[object] = []
    original = forward.describe
    monkeypatch.setattr(forward, "describe", lambda *arguments: asked.append(1) or original(*arguments))
    cache = model.make_cache()
    with inference():
        for seed in range(4):
            mx.eval(model(tokens(model, 1, 2, seed), cache))
    assert len(asked) == 1
