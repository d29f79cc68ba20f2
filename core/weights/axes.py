"""Tells which axis of a tensor holds the output rows, along which the parts of a projection are joined."""

from __future__ import annotations


def rows_axis(role: str, ndim: int) -> int:
    """The last axis of a bias; the second last of a matrix (also of its packed form, scales and biases)."""
    return -1 if role == "bias" or ndim == 1 else -2
