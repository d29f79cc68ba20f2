"""What a written checkpoint will be: its tensors, files, config and sizes, before anything is written.

Made from a model, evaluated or not, and the weight map of the layout that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.config import ModelConfig
from core.errors import UsageError, WeightsError
from core.registry import BoundPlugin
from core.saving.config import written_config
from core.saving.shards import DEFAULT_SHARD_SIZE, Shard, plan_shards
from core.saving.table import count_parameters, quantized_paths, tabulate
from core.weights import Plan, Quantization, WeightMap
from core.weights.invert import Inverse, inverses
from core.weights.tree import all_arrays

_HF, _MLX = "hf", "mlx"
LAYOUTS = (_HF, _MLX)


@dataclass(frozen=True)
class Target:
    """A checkpoint that is about to be written.

    Attributes:
        layout: its arrangement of tensors; read_from: the source's.
        inverses: parameter → how it becomes tensors.
        shards: its files.
        config: its ``config.json``.
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
    def nbytes(self) -> int:
        """Bytes of the weight files."""
        return sum(shard.nbytes for shard in self.shards)


def make_target(
    model: nn.Module,
    plugin: BoundPlugin,
    config: ModelConfig,
    raw_config: Mapping[str, Any],
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
        plan: of the load that the model came from.
        layout: None keeps the source's.
        order: of the parameters in the files; None takes the model's.
        stored: from a parameter's path and dtype to the dtype in the file.
        dtype: what the config states as the floats' dtype; None leaves what it says.

    Raises:
        UsageError: an unknown layout, one that the architecture has not, or shards without room.
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
    tensors = tabulate(model, found, paths, stored)
    quantized = quantized_paths(model, found)
    names = {tensor.name for tensor in tensors}
    return Target(
        model_type=plan.model_type,
        layout=layout,
        read_from=plan.layout,
        inverses=found,
        # MLX's packed matrices are nothing that PyTorch could read, whatever their names.
        shards=plan_shards(tensors, max_shard_size, "mlx" if layout == _MLX or quantized else "pt"),
        config=written_config(raw_config, quantized, names, dtype=dtype),
        quantized=quantized,
        parameters=count_parameters(model, found),
        ignored=plan.ignored,
    )


def _map_of(plugin: BoundPlugin, config: ModelConfig, layout: str) -> WeightMap:
    found = plugin.weight_map(config, layout)
    if found is None and layout == _MLX:
        found = plugin.weight_map(config, _HF)  # a plugin has a map of mlx-lm's names only where they differ
    if found is None:
        has = [name for name in LAYOUTS if plugin.weight_map(config, name) is not None]
        raise UsageError(f"plugin {plugin.name} has no layout {layout!r}", expected=" or ".join(has))
    return found
