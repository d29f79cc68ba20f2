"""Runs weight maps backwards: turns a model's parameters into the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from core.errors import PluginError, UsageError
from core.nn import FusedLinear
from core.weights.axes import rows_axis
from core.weights.nodes import Joined, Leaf, Node, Permuted, Stacked, is_fused, iter_leaves, select, tensor_name
from core.weights.permute import to_pairs
from core.weights.rules import WeightMap
from core.weights.tree import find, own_arrays


@dataclass(frozen=True, slots=True)
class Inverse:
    """How one parameter becomes tensors.

    Attributes:
        parameter: path in the model.
        source: an operation on the paths of modules in the checkpoint; on whole tensor names where ``role`` is empty.
        role: the tensor's part in its module (``weight``, ``scales``, …).
        rows: output rows of each part of the source's concatenation; None where they are unknown.
    """

    parameter: str
    source: Node
    role: str
    rows: tuple[int, ...] | None

    @property
    def names(self) -> list[str]:
        """The tensors' names, in order."""
        return [self._name(leaf) for leaf in iter_leaves(self.source)]

    def tensors(self, array: mx.array) -> Iterator[tuple[str, mx.array]]:
        """The parameter's value as named tensors, unevaluated."""
        return self._split(self.source, array)

    def _name(self, leaf: Leaf) -> str:
        return tensor_name(leaf, self.role) if self.role else leaf.name

    def _split(self, node: Node, array: mx.array) -> Iterator[tuple[str, mx.array]]:
        if isinstance(node, Leaf):
            yield self._name(node), array
        elif isinstance(node, Stacked):
            for index, part in enumerate(node.parts):
                yield from self._split(part, array[index])
        elif isinstance(node, Permuted):
            yield from self._split(node.part, to_pairs(array, node.heads, rows_axis(self.role, array.ndim)))
        else:
            assert isinstance(node, Joined)
            if self.rows is None:
                raise PluginError(
                    f"the weight map joins parts into {self.parameter!r}, which does not know their sizes",
                    hint="Make the target a core.nn.FusedLinear.",
                )
            bounds = [sum(self.rows[: i + 1]) for i in range(len(self.rows) - 1)]
            pieces = mx.split(array, bounds, axis=rows_axis(self.role, array.ndim))
            for part, piece in zip(node.parts, pieces, strict=True):
                yield from self._split(part, piece)


def inverses(model: nn.Module, weight_map: WeightMap) -> dict[str, Inverse]:
    """Every parameter that a map fills → how it becomes tensors again, in the map's order.

    Raises:
        PluginError: the map does not fit the model.
    """
    return {
        inverse.parameter: inverse
        for row in weight_map.expand()
        for target, source, rows in _pieces(model, row.target, row.source)
        for inverse in _inverses(find(model, target), target, source, rows)
    }


def checkpoint_tensors(model: nn.Module, weight_map: WeightMap) -> dict[str, mx.array]:
    """The tensors from which a load by ``weight_map`` would give ``model``, unevaluated, in the map's order.

    Raises:
        PluginError: the map does not fit the model, or joins parts into a module that does not store their sizes.
    """
    return {
        name: tensor
        for inverse in inverses(model, weight_map).values()
        for name, tensor in inverse.tensors(find(model, inverse.parameter))
    }


def _pieces(model: nn.Module, target: str, source: Node) -> Iterator[tuple[str, Node, tuple[int, ...] | None]]:
    """A row's modules with their sources; a fused projection has one module for each of its groups."""
    module = find(model, target)
    if not isinstance(module, FusedLinear):
        yield target, source, None
        return
    if is_fused(source):
        if len(module.groups) > 1:
            raise UsageError(
                f"the layout stores the parts of {target!r} as one matrix, but they are quantized differently",
                found="; ".join(" + ".join(group) for group in module.groups),
                hint="Save in a layout that stores them apart.",
            )
        yield f"{target}.linears.0", source, None
        return
    names = list(module.parts)
    for number, group in enumerate(module.groups):
        indices = tuple(names.index(name) for name in group)
        rows = tuple(module.parts[name] for name in group)
        yield f"{target}.linears.{number}", select(source, indices), rows


def _inverses(
    target: nn.Module | mx.array | None, path: str, source: Node, rows: tuple[int, ...] | None
) -> Iterator[Inverse]:
    if isinstance(target, mx.array):
        yield Inverse(path, source, "", rows)
    elif isinstance(target, nn.Module):
        for role in own_arrays(target):
            yield Inverse(f"{path}.{role}", source, role, rows)
    else:
        raise PluginError(f"the weight map's target {path!r} is neither a module nor a parameter of the model")
