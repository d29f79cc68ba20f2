"""Finds and replaces modules and arrays in a module tree by dotted path."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn


def find(model: nn.Module, path: str) -> Any:
    """The module or array at ``layers.0.mlp.down_proj``; None if there is none."""
    node: Any = model
    for segment in path.split("."):
        if isinstance(node, list):
            if not segment.isdigit() or int(segment) >= len(node):
                return None
            node = node[int(segment)]
        elif isinstance(node, nn.Module) and segment in node:
            node = node[segment]
        else:
            return None
    return node


def replace(model: nn.Module, path: str, value: nn.Module | mx.array) -> None:
    """Puts a module or array at an existing path."""
    parent_path, _, name = path.rpartition(".")
    parent = find(model, parent_path) if parent_path else model
    if isinstance(parent, list):
        parent[int(name)] = value
    else:
        parent[name] = value


def own_arrays(module: nn.Module) -> dict[str, mx.array]:
    """A module's direct parameters, without those of its children."""
    return {name: value for name, value in module.items() if isinstance(value, mx.array) and not name.startswith("_")}


def all_arrays(model: nn.Module) -> dict[str, mx.array]:
    """Every parameter by dotted path."""
    found: dict[str, mx.array] = {}

    def walk(prefix: str, node: Any) -> None:
        items = enumerate(node) if isinstance(node, list | tuple) else node.items()
        for name, value in items:
            if str(name).startswith("_"):
                continue
            if isinstance(value, mx.array):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, nn.Module | dict | list | tuple):
                walk(f"{prefix}{name}.", value)

    walk("", model)
    return found
