"""Mixtral's architecture under the type ``frozen``, with every hook of plugin API 0.1 and every argument of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.nn as nn

from core import CacheSpec, hookimpl
from core.nn import Decoder
from core.weights import WeightMap

from .block import Block
from .config import FrozenConfig
from .moe import Router
from .weights import weight_map_for

loaded: list[tuple[nn.Module, Any]] = []


@hookimpl
def parse_config(config: dict[str, Any]) -> FrozenConfig:
    return FrozenConfig.from_dict(config)


@hookimpl
def weight_map(config: FrozenConfig, layout: str) -> WeightMap | None:
    return weight_map_for(config, layout)


@hookimpl
def build_block(config: FrozenConfig, index: int) -> nn.Module:
    assert 0 <= index < config.num_hidden_layers
    return Block(config)


@hookimpl
def build_model(config: FrozenConfig, blocks: Sequence[nn.Module]) -> Decoder:
    norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    return Decoder(config.vocab_size, config.hidden_size, blocks, norm, tie_word_embeddings=config.tie_word_embeddings)


@hookimpl
def make_cache(config: FrozenConfig, index: int) -> CacheSpec:
    assert 0 <= index < config.num_hidden_layers
    if config.sliding_window is None:
        return CacheSpec.full(config.num_key_value_heads, config.head_dim)
    return CacheSpec.sliding(config.sliding_window, config.num_key_value_heads, config.head_dim)


@hookimpl
def quantize_module(config: FrozenConfig, path: str, module: nn.Module) -> bool | None:
    return False if isinstance(module, Router) and path.startswith("layers.") else None


@hookimpl
def model_loaded(model: nn.Module, report: Any) -> None:
    loaded.append((model, report))
