"""Reorders the rows of a rotary projection: from interleaved pairs to the two halves of each head, and back.

Interleaved rows of a head are x0 y0 x1 y1 …, halved ones x0 x1 … y0 y1 …, where (x, y) is the pair that one frequency
rotates. Reference: ``permute`` in transformers' conversion of Mistral's own files.
"""

from __future__ import annotations

import mlx.core as mx


def to_halves(array: mx.array, heads: int, axis: int) -> mx.array:
    """Reorders the rows of each head along ``axis`` (negative) from interleaved pairs to halves. Other axes are
    kept."""
    return _swap(array, heads, axis, pairs_last=True)


def to_pairs(array: mx.array, heads: int, axis: int) -> mx.array:
    """The inverse of ``to_halves``."""
    return _swap(array, heads, axis, pairs_last=False)


def _swap(array: mx.array, heads: int, axis: int, *, pairs_last: bool) -> mx.array:
    place = array.ndim + axis
    half = array.shape[place] // heads // 2
    inner = (half, 2) if pairs_last else (2, half)
    split = array.reshape(*array.shape[:place], heads, *inner, *array.shape[place + 1 :])
    return split.swapaxes(place + 1, place + 2).reshape(array.shape)
