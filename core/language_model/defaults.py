"""What a checkpoint says of a generation where its user says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from core.config import ModelConfig
from core.config.context import context_length
from core.generation import checkpoint_number, checkpoint_stops
from core.nn import Cache

_MAX_TOKENS = 256


def default_max_tokens(generation_config: Mapping[str, Any]) -> int:
    """New tokens at most: what the checkpoint states, else 256."""
    stated: int | None = checkpoint_number(generation_config, "max_new_tokens", int)
    return _MAX_TOKENS if stated is None else stated


def default_stops(generation_config: Mapping[str, Any], tokenizer: object | None) -> list[str]:
    """Stop strings: what the checkpoint states. Without a tokenizer there is no text to find them in."""
    return [] if tokenizer is None else checkpoint_stops(generation_config)


def named_eos_ids(configs: Iterable[Mapping[str, Any]]) -> frozenset[int]:
    """The ids that configs name as ends of a sequence, one or several each."""
    named = [config.get("eos_token_id") for config in configs]
    ids = [item for value in named for item in (value if isinstance(value, list) else [value])]
    return frozenset(item for item in ids if isinstance(item, int))


def context_of(config: ModelConfig, cache: Cache) -> int | None:
    """``LanguageModel.context``, from an empty cache of the model."""
    length = context_length(config)
    specs = [block.spec for block in cache.blocks]
    bounded = all(spec.kind == "state" or (spec.window is not None and spec.window <= (length or 0)) for spec in specs)
    return None if specs and bounded else length
