"""Mistral: a decoder with grouped-query attention, an optional sliding window, rotary positions and SwiGLU.

Jiang et al., "Mistral 7B" (2023); reference implementation: transformers' ``MistralForCausalLM``.
"""

from __future__ import annotations

from typing import Any

import mlx.nn as nn

from core import hookimpl
from core.weights import WeightMap

from .block import Block
from .config import MistralConfig
from .weights import weight_map_for


@hookimpl
def parse_config(config: dict[str, Any]) -> MistralConfig:
    return MistralConfig.from_dict(config)


@hookimpl
def weight_map(config: MistralConfig, layout: str) -> WeightMap | None:
    return weight_map_for(config, layout)


@hookimpl
def build_block(config: MistralConfig) -> nn.Module:
    return Block(config)
