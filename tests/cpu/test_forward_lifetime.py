"""The CPU library reads memory that belongs to arrays of MLX: what happens when these change, move or go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

import core
from core.cpu_pass import forward
from core.kernels import inference
from core.nn import Decoder
from core.nn.quantized import QuantizedLinear
from tests.cpu.models import (
    as_numbers,
    assert_computed_alike,
    assert_same,
    by_library,
    by_mlx,
    decoder,
    needs_library,
    quantize,
    tokens,
)

pytestmark = needs_library

Change = Callable[[Decoder], None]


def _attention(model: Decoder) -> Any:
    return model.layers[0].self_attn


def test_weights_that_are_views() -> None:
    """A part of a larger array is read where it lies; a transposed one is MLX's."""
    model = decoder(hidden_size=64)
    weight = _attention(model).o_proj.weight
    twice = mx.concatenate([weight, weight])
    mx.eval(twice)
    _attention(model).o_proj.weight = twice[64:]
    assert_computed_alike(model)
    del twice
    _attention(model).o_proj.weight = mx.swapaxes(mx.contiguous(weight.T), 0, 1)
    mx.eval(_attention(model).o_proj.weight)
    ids = tokens(model, 1, 5)
    with inference():
        found = as_numbers(model(ids, model.make_cache()))
    assert_same(found, by_mlx(model, ids, model.make_cache()))


def test_a_model_that_nobody_holds_is_freed() -> None:
    """At once, and what it computed lives on."""
    model = decoder(hidden_size=64)
    cache = model.make_cache()
    with inference():
        logits = model(tokens(model, 1, 5), cache)
    numbers, gone = as_numbers(logits), weakref.ref(model)
    known = set(forward._descriptions)
    key = id(model)
    assert key in known
    gc.disable()
    try:
        del model, cache
        assert gone() is None
    finally:
        gc.enable()
    assert key not in forward._descriptions
    for seed in range(8):
        assert_computed_alike(decoder(seed, hidden_size=64))  # some of them at the same address
    np.testing.assert_array_equal(as_numbers(logits), numbers)


def test_replaced_weights_are_freed() -> None:
    """By the next step; two copies of a model may be more than there is memory."""
    model = decoder(hidden_size=64)
    assert_computed_alike(model)
    gone = [weakref.ref(array) for _, array in tree_flatten(model.parameters())]
    model.update(tree_map(lambda array: array * 0.9, model.parameters()))
    assert_computed_alike(model)
    gc.collect()
    assert not [one for one in gone if one() is not None]


def test_a_lazy_load(tmp_path: Path) -> None:
    """Its weights are read when the library is told where they are."""
    lm = core.load("demo:mistral", lazy=True, tokenizer=False)
    same = core.load("demo:mistral", tokenizer=False)
    ids = tokens(lm.model, 1, 9)
    found = by_library(lm.model, ids, lm.make_cache())
    assert_same(found, by_library(same.model, ids, same.make_cache()))


def test_quantized_layers_that_are_shared_by_two_models() -> None:
    model, other = (decoder(seed, hidden_size=64, intermediate_size=96) for seed in (0, 4))
    quantize(model)
    assert type(_attention(model).o_proj) is QuantizedLinear
    other.layers[1] = model.layers[0]
    assert_computed_alike(model)
    del model
    gc.collect()
    assert_computed_alike(other)
