"""Mistral 3: a text model inside one for text and images, of which the text alone is loaded.

The text model is of another type (``text_config.model_type``), and whoever claims that type builds it: this plugin
knows only where the wrapper keeps its config and its tensors. Reference implementation: transformers'
``Mistral3ForConditionalGeneration``, given no image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.nn as nn

from core import CacheSpec, delegate, hookimpl
from core.nn import Decoder
from core.weights import WeightMap

from .config import Mistral3Config
from .weights import wrapped


@hookimpl
def parse_config(config: dict[str, Any]) -> Mistral3Config:
    return Mistral3Config.from_dict(config)


@hookimpl
def weight_map(config: Mistral3Config, layout: str) -> WeightMap | None:
    if layout == "mistral":  # such files wrap nothing: their params.json is the text model's
        return None
    inner = delegate(config.text_type).weight_map(config.text_config, layout)
    if inner is None and layout == "hf-fused":  # in memory the prefixes differ, whether or not there are experts
        inner = delegate(config.text_type).weight_map(config.text_config, "hf")
    return None if inner is None else wrapped(inner, layout)


@hookimpl
def build_block(config: Mistral3Config, index: int) -> nn.Module:
    return delegate(config.text_type).build_block(config.text_config, index)


@hookimpl
def build_model(config: Mistral3Config, blocks: Sequence[nn.Module]) -> Decoder:
    return delegate(config.text_type).build_model(config.text_config, blocks)


@hookimpl
def make_cache(config: Mistral3Config, index: int) -> CacheSpec:
    return delegate(config.text_type).make_cache(config.text_config, index)


@hookimpl
def quantize_module(config: Mistral3Config, path: str, module: nn.Module) -> bool:
    return delegate(config.text_type).quantize_module(config.text_config, path, module)
