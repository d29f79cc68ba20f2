"""Prepares a load up to its first weight: opens the checkpoint, binds the plugin, makes the skeleton and the plan."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx

from core.checkpoint import Checkpoint, open_checkpoint
from core.config import ModelConfig
from core.errors import WeightsError
from core.layouts import LAYOUTS
from core.loading.configure import configure, located, unread_keys
from core.loading.skeleton import random_state_kept, skeleton
from core.nn import Decoder
from core.registry import BoundPlugin
from core.weights import Plan, QuantizationConfig, WeightMap
from core.weights.dtypes import dtype_from
from core.weights.planning import coverage, make_plan
from core.weights.treatment import Treatment


@dataclass
class Prepared:
    """A load before its weights are read: everything that names, headers and config determine."""

    checkpoint: Checkpoint
    raw_config: dict[str, Any]
    bound: BoundPlugin
    config: ModelConfig
    model: Decoder = field(repr=False)
    plan: Plan = field(repr=False)


def prepare(
    source: str | os.PathLike[str],
    *,
    plugin: Any = None,
    strict: bool = False,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    format: str | None = None,
    progress: bool = False,
    treatment: Treatment | None = None,
) -> Prepared:
    """Prepares a load; no weight is read. Arguments as for ``core.load``."""
    checkpoint = open_checkpoint(source, revision=revision, download=False, progress=progress, format=format)
    return prepare_opened(checkpoint, plugin=plugin, strict=strict, dtype=dtype, treatment=treatment)


def prepare_opened(
    checkpoint: Checkpoint,
    *,
    plugin: Any = None,
    strict: bool = False,
    dtype: mx.Dtype | str | None = None,
    treatment: Treatment | None = None,
) -> Prepared:
    """``prepare``, for a checkpoint that is already open."""
    computes = dtype_from(dtype)
    raw, bound, config = configure(checkpoint, plugin, strict)
    quantization = located(lambda: QuantizationConfig.from_config(raw), checkpoint.where(checkpoint.config_name))
    model, specs = skeleton(bound, config)
    layout, weight_map, notes = _recognise(bound, config, checkpoint)
    with random_state_kept():  # quantized and split modules draw new parameters
        made = make_plan(
            model,
            weight_map,
            checkpoint.tensors,
            source=checkpoint.source,
            model_type=config.model_type,
            plugin=bound.name,
            layout=layout,
            cache_specs=specs,
            quantization=quantization,
            dtype=computes,
            where=checkpoint.where,
            config_name=checkpoint.config_name,
            unread_keys=tuple(unread_keys(checkpoint, raw, config)),
            notes=notes,
            treatment=replace(
                treatment or Treatment(), allowed=lambda path, module: bound.quantize_module(config, path, module)
            ),
        )
    return Prepared(checkpoint, raw, bound, config, model, made)


def _recognise(
    bound: BoundPlugin, config: ModelConfig, checkpoint: Checkpoint
) -> tuple[str, WeightMap, tuple[str, ...]]:
    """The layout whose map uses most of the checkpoint's tensors."""
    maps = {layout: bound.weight_map(config, layout) for layout in LAYOUTS}
    known = {layout: found for layout, found in maps.items() if found is not None}
    if not known:
        raise WeightsError(f"plugin {bound.name} has no weight map for any layout", expected=" or ".join(LAYOUTS))
    covered = {layout: coverage(found, checkpoint.tensors) for layout, found in known.items()}
    layout = max(covered, key=lambda name: covered[name])
    notes = []
    if checkpoint.alternates:
        other = next(name for name in checkpoint.formats if name != checkpoint.format)
        notes.append(
            f"the weights are there twice; read in the format {checkpoint.format!r}, not read: "
            f"{', '.join(checkpoint.alternates)}; format={other!r} (--format {other}) reads those instead"
        )
    return layout, known[layout], tuple(notes)
