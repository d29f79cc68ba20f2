"""Mistral 3: a text model inside a model for text and images, of which only the text model is loaded.

The text model has a type of its own (``text_config.model_type``), and the plugin for that type builds it. This plugin
only handles the wrapper's config and tensor names. Reference implementation: transformers'
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
    if layout == "mistral":  # such files have no wrapper: their params.json is the text model's
        return None
    inner = delegate(config.text_type).weight_map(config.text_config, layout)
    if inner is None and layout == "hf-fused":  # in memory the prefixes differ, with and without experts
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
