"""Sizes of a model's parts that must fit each other before C code may read them; where they do not, MLX says so."""

from __future__ import annotations

import mlx.core as mx

from core.cpu.structures import Layer, Matrix


class UnsupportedError(Exception):
    """The CPU library does not compute this; the message says what, to follow "because of"."""


def check_size(what: str, array: mx.array, expected: int) -> None:
    """Compares how many numbers an array has.

    Raises:
        UnsupportedError: it has another number of them.
    """
    if array.size != expected:
        raise UnsupportedError(f"{what} of {array.size} numbers where {expected} fit")


def check_layer(layer: Layer, hidden: int, rotated: int) -> None:
    """Compares the sides of a block's matrices.

    Args:
        layer: the block.
        hidden: features of the residual stream.
        rotated: features of a head that are rotated.

    Raises:
        UnsupportedError: two sides do not fit.
    """
    queries, keys = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
    inner = layer.down.columns
    _check_sides("queries, keys and values", layer.qkv, queries + 2 * keys, hidden)
    _check_sides("the attention's output", layer.output, hidden, queries)
    _check_sides("gate and up", layer.gate_up, 2 * inner, hidden)
    _check_sides("down", layer.down, hidden, inner)
    if layer.experts:
        _check_sides("the router", layer.router, layer.experts, hidden)
        if not 0 < layer.chosen <= layer.experts:
            raise UnsupportedError(f"{layer.chosen} of {layer.experts} experts for a token")
    if layer.kv_heads < 1 or layer.heads % layer.kv_heads:
        raise UnsupportedError(f"{layer.heads} query heads for {layer.kv_heads} key heads")
    if rotated > layer.head_dim or rotated % 2:
        raise UnsupportedError(f"{rotated} rotated features of a head's {layer.head_dim}")


def check_head(head: Matrix, hidden: int) -> None:
    """Compares the language head's columns with the residual stream; raises as ``check_layer``."""
    _check_sides("the head", head, head.rows, hidden)


def _check_sides(what: str, matrix: Matrix, rows: int, columns: int) -> None:
    if (matrix.rows, matrix.columns) != (rows, columns):
        raise UnsupportedError(f"{what} of {matrix.rows} x {matrix.columns} where {rows} x {columns} fit")
