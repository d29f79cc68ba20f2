"""Weight maps, backwards: a model's parameters as the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn

from core.errors import PluginError
from core.nn import FusedLinear
from core.weights.axes import rows_axis
from core.weights.permute import to_pairs
from core.weights.rules import Joined, Leaf, Node, Permuted, Stacked, WeightMap, is_fused, select, tensor_name
from core.weights.tree import find, own_arrays


def checkpoint_tensors(model: nn.Module, weight_map: WeightMap) -> dict[str, mx.array]:
    """The tensors that a load of ``model`` by ``weight_map`` would read, unevaluated, in the map's order.

    Raises:
        PluginError: the map does not fit the model, or joins parts into a module that does not know their sizes.
    """
    return {
        name: array
        for row in weight_map.expand()
        for target, source, rows in _pieces(model, row.target, row.source)
        for name, array in _tensors(find(model, target), target, source, rows)
    }


def _pieces(model: nn.Module, target: str, source: Node) -> Iterator[tuple[str, Node, list[int] | None]]:
    """A row's modules with their sources; a fused projection has one for each of its groups."""
    module = find(model, target)
    if not isinstance(module, FusedLinear):
        yield target, source, None
        return
    if is_fused(source):
        if len(module.groups) > 1:
            raise PluginError(
                f"the layout stores the parts of {target!r} as one matrix, but they are quantized differently",
                found="; ".join(" + ".join(group) for group in module.groups),
                hint="Save in a layout that stores them apart.",
            )
        yield f"{target}.linears.0", source, None
        return
    names = list(module.parts)
    for number, group in enumerate(module.groups):
        indices = tuple(names.index(name) for name in group)
        yield f"{target}.linears.{number}", select(source, indices), [module.parts[name] for name in group]


def _tensors(
    target: nn.Module | mx.array | None, path: str, source: Node, rows: list[int] | None
) -> Iterator[tuple[str, mx.array]]:
    if isinstance(target, mx.array):
        yield from _split(source, target, "", path, rows)
    elif isinstance(target, nn.Module):
        for role, array in own_arrays(target).items():
            yield from _split(source, array, role, path, rows)
    else:
        raise PluginError(f"the weight map's target {path!r} is neither a module nor a parameter of the model")


def _split(node: Node, array: mx.array, role: str, path: str, rows: list[int] | None) -> Iterator[tuple[str, mx.array]]:
    if isinstance(node, Leaf):
        yield (tensor_name(node, role) if role else node.name), array
    elif isinstance(node, Permuted):
        yield from _split(node.part, to_pairs(array, node.heads, rows_axis(role, array.ndim)), role, path, rows)
    elif isinstance(node, Stacked):
        for index, part in enumerate(node.parts):
            yield from _split(part, array[index], role, path, rows)
    else:
        assert isinstance(node, Joined)
        if rows is None:
            raise PluginError(
                f"the weight map joins parts into {path!r}, which does not know their sizes",
                hint="Make the target a core.nn.FusedLinear.",
            )
        bounds = [sum(rows[: i + 1]) for i in range(len(rows) - 1)]
        for part, piece in zip(node.parts, mx.split(array, bounds, axis=rows_axis(role, array.ndim)), strict=True):
            yield from _split(part, piece, role, path, rows)
