"""Random models of every form that the CPU library computes, and runs of them with and without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map_with_path

from core.cpu.library import library_status, load_library
from core.cpu_pass import forward
from core.cpu_pass.passage import Passage
from core.kernels import inference, reference_only
from core.nn import Cache, CacheSpec, Decoder
from core.nn.groups import CacheGroups
from plugins.mistral.block import Block as MistralBlock
from plugins.mistral.config import MistralConfig
from plugins.mixtral.block import Block as MixtralBlock
from plugins.mixtral.config import MixtralConfig
from plugins.mixtral.moe import Router

needs_library = pytest.mark.skipif(
    mx.default_device().type != mx.cpu or load_library() is None, reason="no CPU library for the device at hand"
)
TILES = library_status().level == "amx"
"""Whether the library at hand multiplies in tiles."""
BOUND = 1e-4 if TILES else 2e-5
"""Of float32 logits against MLX's, as a part of the largest. Tiles multiply sums of two bfloat16, which are 16 bits."""


def decoder(seed: int = 0, *, experts: int = 0, window: int | None = None, layers: int = 2, **sizes: Any) -> Decoder:
    """A model of Mistral's blocks, or of Mixtral's where there are experts, with norms that are not ones."""
    settings: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "sliding_window": window,
        "rms_norm_eps": 1e-5,
        **sizes,
    }
    tied = settings.get("tie_word_embeddings", False)
    block: Any
    if experts:
        settings |= {"num_local_experts": experts, "num_experts_per_tok": settings.pop("chosen", 2)}
        config: Any = MixtralConfig.from_dict({"model_type": "mixtral", **settings})
        block = MixtralBlock
    else:
        config = MistralConfig.from_dict({"model_type": "mistral", **settings})
        block = MistralBlock
    mx.random.seed(seed)
    hidden = settings["hidden_size"]
    norm = nn.RMSNorm(hidden, eps=settings["rms_norm_eps"])
    blocks = [block(config) for _ in range(layers)]
    made = Decoder(settings["vocab_size"], hidden, blocks, norm, tie_word_embeddings=tied)
    made.update(tree_map_with_path(_larger, made.parameters()))
    heads = config.num_key_value_heads, config.head_dim
    spec = CacheSpec.full(*heads) if window is None else CacheSpec.sliding(window, *heads)
    made.set_cache_specs([spec] * layers)
    mx.eval(made.parameters())
    return made


def _larger(path: str, array: mx.array) -> mx.array:
    """Weights whose products are about as large as what they are made from, and norms that are not ones."""
    if "norm" in path:
        return mx.random.uniform(0.5, 1.5, array.shape)
    return mx.random.normal(array.shape) * array.shape[-1] ** -0.5


def quantize(model: Decoder, *, group: int = 32, bits: int = 4, mode: str = "affine") -> None:
    """Quantizes all but routers, which stay in full precision as they do in a load."""
    nn.quantize(
        model,
        group_size=group,
        bits=bits,
        mode=mode,
        class_predicate=lambda _, module: hasattr(module, "to_quantized") and not isinstance(module, Router),
    )
    mx.eval(model.parameters())


def tokens(model: Decoder, rows: int, count: int, seed: int = 0) -> mx.array:
    """Random ids ``[rows, count]``."""
    return mx.random.randint(0, model.vocab_size, (rows, count), key=mx.random.key(seed))


def by_library(
    model: Decoder, ids: mx.array, cache: Cache | CacheGroups, lengths: Sequence[int] | None = None
) -> np.ndarray:
    """Logits of one pass in the CPU library; fails where MLX computes it."""
    reason = forward.reason(model)
    assert reason is None, reason
    plans: list[object] = []
    original = Passage.run

    def run(passage: Any, *arguments: Any) -> mx.array:
        plans.append(passage)
        return original(passage, *arguments)

    Passage.run = run  # type: ignore[method-assign]
    try:
        with inference():
            logits = model(ids, cache, lengths)
    finally:
        Passage.run = original  # type: ignore[method-assign]
    assert plans, "MLX has computed this pass"
    return as_numbers(logits)


def by_mlx(
    model: Decoder, ids: mx.array, cache: Cache | CacheGroups, lengths: Sequence[int] | None = None
) -> np.ndarray:
    """Logits of one pass on the ordinary path."""
    with inference(), reference_only():
        return as_numbers(model(ids, cache, lengths))


def as_numbers(array: mx.array) -> np.ndarray:
    """A copy that nothing can change any more."""
    return np.array(array.astype(mx.float32))


def assert_same(found: np.ndarray, expected: np.ndarray, bound: float = BOUND) -> None:
    """Whether two arrays differ by at most ``bound`` times the largest number of the second."""
    assert found.shape == expected.shape
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert difference <= bound, f"differs by {difference:.1e} of the largest number"


def assert_computed_alike(model: Decoder, *, library: bool = True, count: int = 6) -> None:
    """Whether a fresh sequence has MLX's logits, by the library or, where that declines, by MLX in `inference()`."""
    ids = tokens(model, 1, count)
    if library:
        found = by_library(model, ids, model.make_cache())
    else:
        assert forward.reason(model) is not None
        with inference():
            found = as_numbers(model(ids, model.make_cache()))
    assert_same(found, by_mlx(model, ids, model.make_cache()))
