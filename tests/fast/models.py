"""Small random models with the shapes that a fast step takes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

import core

SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


def build(model_type: str = "mistral", bits: int = 16, **changes: Any) -> Any:
    """A bfloat16 model, quantized where ``bits`` is less than 16; a window of 64 unless told otherwise."""
    mx.random.seed(0)
    config = {"model_type": model_type, **SIZES, "sliding_window": 64, **changes}
    if model_type == "mixtral":
        config = {"num_local_experts": 4, "num_experts_per_tok": 2, **config}
    built = core.build(config)
    built.model.set_dtype(mx.bfloat16)
    if bits < 16:
        nn.quantize(
            built.model,
            group_size=64,
            bits=bits,
            class_predicate=lambda path, module: built.plugin.quantize_module(built.config, path, module),
        )
    mx.eval(built.model.parameters())
    return built.model


def filled(model: Any, tokens: int) -> Any:
    """A cache that holds so many tokens, taken in one by one."""
    cache = model.make_cache()
    for i in range(tokens):
        mx.eval(model.hidden_states(mx.array([[(37 * i + 5) % 1024]]), cache), cache.arrays())
    return cache
