"""OLMo 2: a decoder whose norms come after attention and feed-forward, with norms on queries and keys as well.

Walsh et al., "2 OLMo 2 Furious" (2024); reference implementation: transformers' ``Olmo2ForCausalLM``.
"""

from __future__ import annotations

from typing import Any

import mlx.nn as nn

from core import hookimpl
from core.weights import WeightMap

from .block import Block
from .config import Olmo2Config
from .weights import hf_weight_map


@hookimpl
def parse_config(config: dict[str, Any]) -> Olmo2Config:
    return Olmo2Config.from_dict(config)


@hookimpl
def weight_map(config: Olmo2Config, layout: str) -> WeightMap | None:
    return hf_weight_map(config) if layout == "hf" else None


@hookimpl
def build_block(config: Olmo2Config) -> nn.Module:
    return Block(config)
