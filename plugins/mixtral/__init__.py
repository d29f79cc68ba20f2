"""Mixtral: Mistral's block with a sparse mixture of SwiGLU experts in place of the feed-forward layer.

Jiang et al., "Mixtral of Experts" (2024); reference implementation: transformers' ``MixtralForCausalLM``.
"""

from __future__ import annotations

from typing import Any

import mlx.nn as nn

from core import hookimpl
from core.weights import WeightMap

from .block import Block
from .config import MixtralConfig
from .moe import Router
from .weights import weight_map_for


@hookimpl
def parse_config(config: dict[str, Any]) -> MixtralConfig:
    return MixtralConfig.from_dict(config)


@hookimpl
def weight_map(config: MixtralConfig, layout: str) -> WeightMap | None:
    return weight_map_for(config, layout)


@hookimpl
def build_block(config: MixtralConfig) -> nn.Module:
    return Block(config)


@hookimpl
def quantize_module(module: nn.Module) -> bool | None:
    # A rounded router sends tokens to other experts, which costs far more than its few bytes save.
    return False if isinstance(module, Router) else None
