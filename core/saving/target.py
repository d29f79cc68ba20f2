"""Plans a checkpoint to be written: its tensors, files, config and sizes.

The plan is made from a model, evaluated or not, and the weight map of the requested layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint import Checkpoint
from core.config import ModelConfig
from core.errors import UsageError, WeightsError
from core.layouts import LAYOUTS
from core.registry import BoundPlugin
from core.saving.config import config_of, native_config, written_config, written_params
from core.saving.shards import DEFAULT_SHARD_SIZE, Shard, plan_shards
from core.saving.table import count_parameters, quantized_paths, tabulate
from core.weights import Plan, Quantization, WeightMap
from core.weights.invert import Inverse, inverses
from core.weights.nodes import iter_leaves
from core.weights.tree import all_arrays

_HF, _MLX, _NATIVE = "hf", "mlx", "mistral"


@dataclass(frozen=True)
class Target:
    """A checkpoint that is about to be written.

    Attributes:
        layout: its layout of tensors; read_from: the source's.
        inverses: parameter → how it becomes tensors.
        shards: its files.
        config: the content of its config file; config_name: the name of that file.
        stem: the beginning of its weight files' names.
        quantized: path in it → settings, for every quantized matrix.
        parameters: number of weights.
        ignored: tensors of the source that were left unread → why.
    """

    model_type: str
    layout: str
    read_from: str
    inverses: Mapping[str, Inverse] = field(repr=False)
    shards: tuple[Shard, ...] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    quantized: Mapping[str, Quantization] = field(repr=False)
    parameters: int
    ignored: Mapping[str, str] = field(repr=False)

    @property
    def config_name(self) -> str:
        return "params.json" if self.layout == _NATIVE else "config.json"

    @property
    def stem(self) -> str:
        return _stem(self.layout)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files."""
        return sum(shard.nbytes for shard in self.shards)


def make_target(
    model: nn.Module,
    plugin: BoundPlugin,
    config: ModelConfig,
    raw_config: Mapping[str, Any],
    source: Checkpoint,
    plan: Plan,
    *,
    layout: str | None,
    order: Iterable[str] | None = None,
    stored: Callable[[str, mx.Dtype], mx.Dtype],
    dtype: mx.Dtype | None = None,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
) -> Target:
    """Plans a checkpoint.

    Args:
        model: evaluated or not.
        plugin: the bound hooks.
        config: the plugin's config object.
        raw_config: with the keys of ``config.json``.
        source: where the model comes from.
        plan: of the load that the model came from.
        layout: None keeps the source's.
        order: of the parameters in the files; None takes the model's.
        stored: from a parameter's path and dtype to the dtype in the file.
        dtype: the floats' dtype to state in the config; None leaves the config's.

    Raises:
        UsageError: an unknown layout; one that the architecture does not have, or whose config format cannot describe
            the model; a shard size that is not positive.
        WeightsError: the map leaves parameters out.
    """
    if max_shard_size < 1:
        raise UsageError("the size of a shard must be positive", found=max_shard_size)
    layout = layout or plan.layout
    found = inverses(model, _map_of(plugin, config, layout))
    paths = list(all_arrays(model) if order is None else order)
    forgotten = [path for path in paths if path not in found]
    if forgotten:
        raise WeightsError(
            f"layout {layout!r} of plugin {plugin.name} has no place for the parameter {forgotten[0]!r}",
            hint="A module that was added to the model (an adapter?) must be merged into it before it is saved.",
        )
    quantized = quantized_paths(model, found)
    _check_room(found, quantized, layout)
    tensors = tabulate(model, found, paths, stored)
    names = {tensor.name for tensor in tensors}
    if layout == _NATIVE:
        written = written_params(native_config(source, plugin, config), quantized, names)
    else:
        usual = raw_config if source.config_name == "config.json" else config_of(raw_config, config, tensors)
        written = written_config(usual, quantized, names, dtype=dtype)
    return Target(
        model_type=plan.model_type,
        layout=layout,
        read_from=plan.layout,
        inverses=found,
        # PyTorch cannot read MLX's packed matrices, whatever their names are.
        shards=plan_shards(tensors, max_shard_size, "mlx" if layout == _MLX or quantized else "pt", stem=_stem(layout)),
        config=written,
        quantized=quantized,
        parameters=count_parameters(model, found),
        ignored=plan.ignored,
    )


def _stem(layout: str) -> str:
    return "consolidated" if layout == _NATIVE else "model"


def _check_room(found: Mapping[str, Inverse], quantized: Mapping[str, Quantization], layout: str) -> None:
    whole = next((leaf.name for one in found.values() for leaf in iter_leaves(one.source) if leaf.whole), None)
    if whole is not None and whole in quantized:
        raise UsageError(
            f"the layout {layout!r} has no place for quantized matrices",
            found=f"{whole}, {quantized[whole]}",
            hint="Its names have no suffix for scales: choose the layout mlx or hf, or full precision (--dequantize).",
        )


def _map_of(plugin: BoundPlugin, config: ModelConfig, layout: str) -> WeightMap:
    found = plugin.weight_map(config, layout)
    if found is None and layout in LAYOUTS and layout != _NATIVE:
        found = plugin.weight_map(config, _HF)  # a plugin has a map of other names only where they differ
    if found is None:
        has = [name for name in LAYOUTS if plugin.weight_map(config, name) is not None]
        raise UsageError(f"plugin {plugin.name} has no layout {layout!r}", expected=" or ".join(has))
    return found
