"""The table of tensors: where each one goes, by which operation, and which matrices are made of several.

Reads a plan and headers; knows no architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from core.checkpoint import TensorInfo
from core.cli.inspection import FusedGroup, Key
from core.weights import Plan
from core.weights.dtypes import spelling
from core.weights.nodes import Joined, Leaf, Node, Operation, Permuted, Stacked, leaves

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")

_MATRIX = re.compile(r"\.q?weight$")


def key_table(tensors: Mapping[str, TensorInfo], plan: Plan | None) -> tuple[Key, ...]:
    """A line for every tensor: those that are loaded in the model's order, then the others in the files'."""
    if plan is None:
        return tuple(_unloaded(name, tensors, "unplanned") for name in tensors)
    keys = list(_loaded(plan, tensors))
    keys += [_unloaded(name, tensors, "missing", parameter) for name, parameter in plan.missing.items()]
    done = {key.tensor for key in keys}
    reasons = dict.fromkeys(plan.unexpected, "unexpected") | dict.fromkeys(plan.ignored, "ignored")
    reasons |= {mismatch.tensor: "mismatched" for mismatch in plan.mismatched}
    keys += [_unloaded(name, tensors, reasons.get(name, "incomplete")) for name in tensors if name not in done]
    return tuple(keys)


def fused_groups(plan: Plan) -> tuple[FusedGroup, ...]:
    """The kinds of matrices that are made of several tensors; biases and scales go as their matrices go."""
    counts: dict[tuple[str, tuple[str, ...], int | None], int] = {}
    for entry in plan.entries:
        if isinstance(entry.source, Leaf | Operation | Permuted) or entry.parameter.rpartition(".")[2] != "weight":
            continue
        stacked = len(entry.source.parts) if isinstance(entry.source, Stacked) else None
        first = entry.source.parts[0] if isinstance(entry.source, Stacked) else entry.source
        nodes = first.parts if isinstance(first, Joined | Stacked) else (first,)
        names = (_MATRIX.sub("", leaves(node)[0]) for node in nodes)
        parts = tuple(name.rpartition(".")[2] for name in names)
        kind = _INDEX.sub("*", entry.parameter.removesuffix(".weight")).removesuffix(".linears.*")
        counts[kind, parts, stacked] = counts.get((kind, parts, stacked), 0) + 1
    return tuple(FusedGroup(*key, count) for key, count in counts.items())


def _loaded(plan: Plan, tensors: Mapping[str, TensorInfo]) -> Iterator[Key]:
    for entry in plan.entries:
        for name, operation in _operations(entry.source):
            info = tensors[name]
            dtype = spelling(entry.dtype)
            yield Key(name, info.dtype, info.shape, operation or "copy", entry.parameter, dtype, entry.shape)


def _operations(node: Node) -> Iterator[tuple[str, str]]:
    """Every tensor below a node, with the operations that it goes through, the outermost first."""
    if isinstance(node, Leaf):
        yield node.name, ""
        return
    if isinstance(node, Operation | Permuted):
        label = node.label if isinstance(node, Operation) else "permute"
        for part in node.parts:
            for name, inner in _operations(part):
                yield name, f"{label}.{inner}" if inner else label
        return
    kind = "concat" if isinstance(node, Joined) else "stack"
    for number, part in enumerate(node.parts, 1):
        for name, inner in _operations(part):
            yield name, f"{kind}[{number}/{len(node.parts)}]" + (f".{inner}" if inner else "")


def _unloaded(name: str, tensors: Mapping[str, TensorInfo], why: str, parameter: str | None = None) -> Key:
    info = tensors.get(name)
    stored, shape = (None, None) if info is None else (info.dtype, info.shape)
    return Key(name, stored, shape, why, parameter, None, None)
