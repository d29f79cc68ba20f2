"""Core's default implementations of the optional hooks, as most decoder-only architectures need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.nn as nn

from core.config import ModelConfig
from core.errors import PluginError
from core.hookspecs import hookimpl
from core.nn import CacheSpec, Decoder


@hookimpl(trylast=True)
def build_model(config: ModelConfig, blocks: Sequence[nn.Module]) -> Decoder:
    """Embedding, blocks, RMSNorm, language head."""
    norm = nn.RMSNorm(config.hidden_size, eps=_attribute(config, "rms_norm_eps", "build_model"))
    return Decoder(config.vocab_size, config.hidden_size, blocks, norm, tie_word_embeddings=config.tie_word_embeddings)


@hookimpl(trylast=True)
def make_cache(config: ModelConfig) -> CacheSpec:
    """Keys and values of every token, or of the last ``sliding_window``."""
    heads = _attribute(config, "num_key_value_heads", "make_cache")
    head_dim = _attribute(config, "head_dim", "make_cache")
    window = getattr(config, "sliding_window", None)
    return CacheSpec.full(heads, head_dim) if window is None else CacheSpec.sliding(window, heads, head_dim)


@hookimpl(trylast=True)
def quantize_module(module: nn.Module) -> bool:
    """True for every module that can be quantized."""
    return hasattr(module, "to_quantized")


def _attribute(config: ModelConfig, name: str, hook: str) -> Any:
    value = getattr(config, name, None)
    if value is None:
        raise PluginError(
            f"{type(config).__name__} has no {name!r}, which core's default {hook} reads",
            hint=f"Add the field, or implement the hook {hook}.",
        )
    return value
