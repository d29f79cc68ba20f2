"""``Experts``: many SwiGLU layers, of which each token uses a few (Shazeer et al., 2017), computed in one of three
ways.

For few rows, the matrix of each row's expert is read one by one. More rows are sorted, so that each matrix is read
once. Many rows on CUDA are multiplied expert by expert: the shapes are known then, and the dense product is the
fastest.
"""

from __future__ import annotations

import itertools

import mlx.core as mx
import mlx.nn as nn

from core.device import backend
from core.kernels import swiglu
from core.kernels.take_rows import take_rows
from core.nn.linear import ExpertLinear, FusedLinear
from core.nn.pacing import begin

# Rows from which sorting tokens by expert costs less than reading an expert's weights again for each of them.
_SORT_FROM = 64
_APART_FROM = 128
"""Rows from which a product for each expert is faster on CUDA than MLX's gathered one (benchmarks/LOG.md, 5 and 8)."""


class Experts(nn.Module):
    """Many SwiGLU layers, of which each token uses a few.

    Args:
        num_experts: layers.
        hidden_size, intermediate_size: features, as in ``MLP``.
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self._count = num_experts
        self.gate_up_proj = FusedLinear(hidden_size, parts, experts=num_experts)
        self.down_proj = ExpertLinear(num_experts, intermediate_size, hidden_size)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Applies each token's experts to it.

        Args:
            x: ``[..., hidden_size]``.
            indices: unsigned integers ``[..., k]``, the experts of each token.

        Returns:
            ``[..., k, hidden_size]``.
        """
        if indices.size < _SORT_FROM:
            y = x[..., None, None, :]
            return self._feed(y, indices, False).squeeze(-2)
        counts = self._counts(indices) if _apart(indices.size) else None
        return self._sorted(x, indices) if counts is None else self._one_by_one(x, indices, counts)

    def _sorted(self, x: mx.array, indices: mx.array) -> mx.array:
        k = indices.shape[-1]
        flat = indices.flatten()
        order = mx.argsort(flat)
        # Reshaped, not expanded: MLX 0.32's CUDA backend misreads the strides of an expanded axis in this product.
        y = take_rows(x.reshape(-1, x.shape[-1]), order // k).reshape(-1, 1, x.shape[-1])
        y = self._feed(y, flat[order], True)
        # Restore the order first, then the shape: the gradient of a squeeze has strides that MLX 0.32's CUDA backend
        # misreads in a sorted product, and all gradients before it would be wrong.
        return y[mx.argsort(order)].reshape(*indices.shape, -1)

    def _counts(self, indices: mx.array) -> list[int] | None:
        """How many rows each expert has; None while nothing can be evaluated.

        The host waits for the router here, once a layer, because shapes depend on it.
        """
        experts = mx.arange(self._count, dtype=indices.dtype)
        counts = mx.sum(indices.reshape(1, -1) == experts[:, None], axis=1)
        try:
            return counts.tolist()  # type: ignore[return-value]
        except (RuntimeError, ValueError):  # while a transformation traces
            return None

    def _one_by_one(self, x: mx.array, indices: mx.array, counts: list[int]) -> mx.array:
        """One product for each expert that has rows. No row is computed without need, however unequal the shares
        are."""
        k = indices.shape[-1]
        order = mx.argsort(indices.flatten())
        rows = take_rows(x.reshape(-1, x.shape[-1]), order // k)
        starts = list(itertools.accumulate(counts, initial=0))
        results: dict[int, mx.array] = {}
        # The largest first, and at once: the device computes it while the host builds the others.
        for expert in sorted(range(self._count), key=lambda one: -counts[one]):
            if counts[expert]:
                mine = rows[starts[expert] : starts[expert + 1]]
                results[expert] = self.down_proj(swiglu(self.gate_up_proj.joined(mine, expert)), expert)
                begin(results[expert])
        y = mx.concatenate([results[expert] for expert in sorted(results)])
        return take_rows(y, mx.argsort(order)).reshape(*indices.shape, -1)

    def _feed(self, x: mx.array, indices: mx.array, in_order: bool) -> mx.array:
        return self.down_proj(swiglu(self.gate_up_proj.joined(x, indices, in_order)), indices, in_order)


def _apart(rows: int) -> bool:
    return rows >= _APART_FROM and backend() == "cuda"
