"""A tiny random model whose greedy ids and caches are cheap to recompute."""

from __future__ import annotations

import mlx.core as mx
import pytest

import core

CONFIG = {
    "model_type": "mistral",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@pytest.fixture(params=[None, 8], ids=["full", "window"], scope="session")
def model(request: pytest.FixtureRequest) -> core.nn.Decoder:
    mx.random.seed(5)
    built = core.build(CONFIG | {"sliding_window": request.param}).model
    mx.eval(built.parameters())
    return built
