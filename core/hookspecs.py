"""The contract: the hooks of an architecture plugin. A plugin is a module that marks these functions with
``@core.hookimpl``.

``parse_config``, ``weight_map`` and ``build_block`` are required; core has defaults for the others. Hooks run while a
model is loaded, never in the forward pass. An implementation may leave out arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import mlx.nn as nn

    from core.config import ModelConfig
    from core.loading import LoadReport
    from core.nn import CacheSpec, Decoder
    from core.weights import WeightMap

PROJECT = "core"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

DEPRECATED: dict[str, str] = {}
"""``hook`` or ``hook.argument`` → what to do instead, and until when it works. A ``FutureWarning`` names a plugin
that still implements it."""


@hookspec(firstresult=True)
def parse_config(config: dict[str, Any]) -> ModelConfig:
    """Required. Validates a parsed ``config.json``: usually ``return MyConfig.from_dict(config)``."""
    raise NotImplementedError


@hookspec(firstresult=True)
def weight_map(config: ModelConfig, layout: str) -> WeightMap | None:
    """Required. Where each parameter comes from in ``layout``; None for a layout that this architecture does not have.

    Layouts: ``hf`` (transformers' names); where they differ, ``hf-fused`` (transformers 5's names in memory) and
    ``mlx`` (mlx-lm's); ``mistral`` (``consolidated*.safetensors``).
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def build_block(config: ModelConfig, index: int) -> nn.Module:
    """Required. The block at ``index``: a module with the protocol ``block(x, step)``, ``x`` ``[batch, seq, size]``."""
    raise NotImplementedError


@hookspec(firstresult=True)
def build_model(config: ModelConfig, blocks: Sequence[nn.Module]) -> Decoder:
    """Optional. The model around the blocks, a ``core.nn.Decoder`` or a subclass; core's default norm is an RMSNorm."""
    raise NotImplementedError


@hookspec(firstresult=True)
def make_cache(config: ModelConfig, index: int) -> CacheSpec:
    """Optional. What the block at ``index`` keeps between steps; the default reads ``sliding_window`` and the heads."""
    raise NotImplementedError


@hookspec(firstresult=True)
def quantize_module(config: ModelConfig, path: str, module: nn.Module) -> bool:
    """Optional. Whether this module is quantized with the model; by default, every module that can be is."""
    raise NotImplementedError


@hookspec
def model_loaded(model: nn.Module, report: LoadReport) -> None:
    """Optional observer, called once when a model is ready."""
