"""Padding of prompts, so that the shapes of attention repeat.

On CUDA, MLX plans the attention of several queries anew for each pair of lengths, which takes 34 ms and more
(benchmarks/LOG.md, 9); a prompt that is padded to a multiple of ``GRID`` finds a plan that an earlier one has left.
``core.kernels.prefill_attention`` needs no plan, but long chunks and models that it does not know are MLX's.
"""

from __future__ import annotations

from typing import Any

from core.device import backend
from core.nn import Decoder, depends_on_length

GRID = 64
_FROM = 4  # fewer queries are attended to without a plan


def padded_length(model: Any, held: int, count: int) -> int:
    """How many tokens to process for ``count`` real ones after ``held`` others; the rest is padding on the right."""
    if count < _FROM or not _pads(model):
        return count
    return -(-(held + count) // GRID) * GRID - held


def chunk_length(held: int, left: int, most: int) -> int:
    """How many of ``left`` tokens to process now, at most ``most``: all that is not the end ends on the grid."""
    if left <= most:
        return left
    return max((held + most) // GRID * GRID - held, 0) or most


def _pads(model: Any) -> bool:
    # Rotary frequencies that depend on the length would count the padding.
    return backend() == "cuda" and isinstance(model, Decoder) and not depends_on_length(model)
