"""Which axis of a tensor holds the output rows that parts of a projection share."""

from __future__ import annotations


def rows_axis(role: str, ndim: int) -> int:
    """The last axis of a bias, the last but one of a matrix (and of its packed form, scales and biases)."""
    return -1 if role == "bias" or ndim == 1 else -2
