"""Builds models without weights, for a load to fill or to train from scratch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from core.config import ModelConfig
from core.loading.configure import configured
from core.nn import CacheSpec, Decoder
from core.registry import BoundPlugin

_building = threading.RLock()  # a plugin may load another model while it builds its own


@dataclass
class BuiltModel:
    """A model without a checkpoint.

    Attributes:
        model, config: as in ``LanguageModel``; plugin: the bound hooks, for their weight maps.
    """

    model: Decoder
    config: ModelConfig
    plugin: BoundPlugin


def build(config: Mapping[str, Any], *, plugin: Any = None) -> BuiltModel:
    """Builds a randomly initialised model from a config, to train it or to measure its shape.

    The parameters are unevaluated and drawn from MLX's global random state, so that ``mx.random.seed`` decides them.

    Args:
        config: as parsed from a ``config.json``, with ``model_type``.

    Raises:
        ConfigError, PluginError: as for ``load``.
    """
    bound, parsed = configured(dict(config), "config", plugin)
    model, _ = _build(bound, parsed)
    return BuiltModel(model, parsed, bound)


def skeleton(bound: BoundPlugin, config: ModelConfig) -> tuple[Decoder, tuple[CacheSpec, ...]]:
    """The model with parameters that will be replaced. MLX's global random state does not change."""
    with random_state_kept():
        return _build(bound, config)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restores MLX's global random state after modules are made inside, whose random parameters are never read."""
    with _building:
        state: Any = mx.random.state
        high, low = state[0].tolist()
        try:
            yield
        finally:
            mx.random.seed((high << 32) | low)  # a seed's two halves are the key


def _build(bound: BoundPlugin, config: ModelConfig) -> tuple[Decoder, tuple[CacheSpec, ...]]:
    """The model with unevaluated parameters, and its blocks' cache specs."""
    indices = range(config.num_hidden_layers)
    model = bound.build_model(config, [bound.build_block(config, index) for index in indices])
    specs = tuple(bound.make_cache(config, index) for index in indices)
    model.set_cache_specs(specs)
    model.eval()
    return model, specs
