"""The bytes that a decode step must read, against sums done by hand."""

from __future__ import annotations

import mlx.core as mx
import pytest

import core
from core.benchmark import SHAPES, Shape
from core.benchmark.random_model import random_model
from core.benchmark.traffic import parameter_count, step_cache_bytes, step_weight_bytes, weight_bytes
from core.nn import CacheSpec
from tests.benchmark.conftest import TINY, TINY_EXPERTS

# q and o: 64 × 64; k and v: 32 × 64; gate, up, down: 128 × 64; two norms.
ATTENTION, MLP, NORMS = 2 * 64 * 64 + 2 * 32 * 64, 3 * 128 * 64, 2 * 64
HEAD = EMBEDDING = 100 * 64


def test_a_plain_model_reads_all_but_the_embedding() -> None:
    built, dtype = random_model(Shape("tiny", TINY), mx.bfloat16)
    assert dtype == mx.bfloat16
    elements = 2 * (ATTENTION + MLP + NORMS) + HEAD + 64
    assert parameter_count(built.model) == elements + EMBEDDING
    assert weight_bytes(built.model) == 2 * (elements + EMBEDDING)
    assert step_weight_bytes(built.model, None) == 2 * (elements + 64)


def test_a_tied_embedding_is_read_as_the_head() -> None:
    built, _ = random_model(Shape("tiny", TINY | {"tie_word_embeddings": True}), mx.bfloat16)
    assert step_weight_bytes(built.model, None) == 2 * (2 * (ATTENTION + MLP + NORMS) + HEAD + 64)


def test_a_quantized_model_reads_its_scales() -> None:
    built, dtype = random_model(Shape("tiny", TINY, bits=4), mx.float32)
    matrices = 2 * (ATTENTION + MLP) + HEAD
    norms = 2 * NORMS + 64
    # Half a byte an element; a scale and a bias for each group of 64; one row of the embedding.
    expected = matrices // 2 + matrices // 64 * 2 * dtype.size + norms * dtype.size + 32 + 2 * dtype.size
    assert step_weight_bytes(built.model, None) == expected
    assert parameter_count(built.model) == matrices + norms + EMBEDDING


def test_a_token_reads_the_experts_that_it_uses() -> None:
    built, dtype = random_model(Shape("tiny", TINY_EXPERTS), mx.float32)
    layer = ATTENTION + NORMS + 4 * 64 + 2 * MLP  # the router has a row for each of the four
    assert step_weight_bytes(built.model, 2) == dtype.size * (2 * layer + HEAD + 64 + 64)
    assert step_weight_bytes(built.model, None) == dtype.size * (2 * (layer + 2 * MLP) + HEAD + 64 + 64)


def test_a_window_bounds_the_cache() -> None:
    full, window = CacheSpec.full(2, 16), CacheSpec.sliding(10, 2, 16)
    assert step_cache_bytes([full], 40, mx.float16) == 40 * 2 * (16 + 16) * 2
    assert step_cache_bytes([full, window], 40, mx.float16) == (40 + 10) * 2 * (16 + 16) * 2


@pytest.mark.parametrize(
    ("name", "parameters", "step"),
    # Published parameter counts; a step reads all but the embedding, and of eight experts two.
    [
        ("mistral-7b", 7_248_023_552, 7_248_023_552 - 32767 * 4096),
        ("mixtral-8x7b", 46_702_792_704, 46_702_792_704 - 31999 * 4096 - 32 * 6 * 3 * 4096 * 14336),
        ("mixtral-8x22b", 140_620_634_112, 140_620_634_112 - 31999 * 6144 - 56 * 6 * 3 * 6144 * 16384),
    ],
)
def test_the_shapes_are_those_of_published_models(name: str, parameters: int, step: int) -> None:
    model = core.build(SHAPES[name]).model  # nothing is computed
    model.set_dtype(mx.bfloat16)
    assert parameter_count(model) == parameters
    assert step_weight_bytes(model, SHAPES[name].get("num_experts_per_tok")) == 2 * step
