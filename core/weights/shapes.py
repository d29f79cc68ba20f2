"""Checks tensors' shapes and dtypes, from the headers, against those that a parameter of the model needs."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from core.checkpoint import TensorInfo
from core.errors import PluginError
from core.weights.axes import rows_axis
from core.weights.dtypes import BYTES, FLOATS, PACKED
from core.weights.fit import Parameter
from core.weights.nodes import Joined, Leaf, Node, Operation, Permuted, Stacked, leaves
from core.weights.plan import Mismatch

_Shape = tuple[int, ...] | None
_Expected = dict[str, tuple[_Shape, tuple[str, ...]]]


def mismatches(parameter: Parameter, tensors: Mapping[str, TensorInfo]) -> list[Mismatch]:
    """The tensors of a parameter that are present but do not fit.

    Raises:
        PluginError: the map permutes rows that do not divide into whole heads.
    """
    whole = tuple(parameter.array.shape)
    expected = _expected(parameter.source, whole, _accepted_dtypes(parameter), parameter, tensors)
    found = []
    for name, (shape, accepted) in expected.items():
        info = tensors.get(name)
        if info is None:
            continue
        if info.dtype not in accepted:
            found.append(Mismatch(name, info.shard, " or ".join(accepted), info.dtype))
        elif shape is not None and info.shape != shape:
            found.append(Mismatch(name, info.shard, f"shape {list(shape)}", f"{list(info.shape)}"))
    return found


def _accepted_dtypes(parameter: Parameter) -> tuple[str, ...]:
    if parameter.settings is None or parameter.role not in ("weight", "scales", "biases"):
        return tuple(FLOATS)
    if parameter.role == "weight":
        return (PACKED,)
    return (BYTES,) if parameter.array.dtype == mx.uint8 else tuple(FLOATS)


def _expected(
    node: Node, shape: _Shape, accepted: tuple[str, ...], parameter: Parameter, tensors: Mapping[str, TensorInfo]
) -> _Expected:
    """Shape (None: any) and dtypes that each tensor below ``node`` must have for the whole to be ``shape``."""
    if isinstance(node, Leaf):
        return {node.name: (shape, accepted)}
    if isinstance(node, Operation):
        needs = node.inputs(shape) if shape is not None else [(None, dtypes) for _, dtypes in node.inputs((1, 1))]
    else:
        needs = [(one, accepted) for one in _part_shapes(node, shape, parameter, tensors)]
    return {
        name: found
        for part, need in zip(node.parts, needs, strict=True)
        for name, found in _expected(part, *need, parameter, tensors).items()
    }


def _part_shapes(
    node: Joined | Stacked | Permuted, shape: _Shape, parameter: Parameter, tensors: Mapping[str, TensorInfo]
) -> list[_Shape]:
    """The shapes of a node's parts; None if the shape of the whole does not determine them."""
    unknown: list[_Shape] = [None] * len(node.parts)
    if shape is None:
        return unknown
    if isinstance(node, Stacked):
        return [shape[1:]] * len(node.parts) if shape[0] == len(node.parts) else unknown
    axis = rows_axis(parameter.role, len(shape))
    if isinstance(node, Permuted):
        if shape[axis] % (2 * node.heads):
            raise PluginError(
                f"the weight map permutes {shape[axis]} rows of {parameter.path!r} as {node.heads} heads",
                expected="rows that make an even number for each head",
            )
        return [shape]
    rows = parameter.rows or _rows_in_file(node, axis, shape[axis], tensors)
    if rows is None:
        return unknown
    before, after = shape[: len(shape) + axis], shape[len(shape) + axis + 1 :]
    return [(*before, count, *after) for count in rows]


def _rows_in_file(node: Joined, axis: int, total: int, tensors: Mapping[str, TensorInfo]) -> tuple[int, ...] | None:
    """The parts' row counts in the file, if the model does not define them and they add up."""
    counts = []
    for part in node.parts:
        info = tensors.get(leaves(part)[0])
        if info is None or len(info.shape) < -axis:
            return None
        counts.append(info.shape[axis])
    return tuple(counts) if sum(counts) == total else tuple([total // len(counts)] * len(counts))
