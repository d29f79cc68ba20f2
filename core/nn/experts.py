"""Many SwiGLU layers, of which each token uses a few (Shazeer et al., 2017): three ways to one result.

Few rows visit their experts' matrices one by one; more are sorted, so that each matrix is fetched once; many on a GPU
are laid out expert by expert, and multiplied as one batch of dense products.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.device import backend
from core.kernels import swiglu
from core.nn.linear import ExpertLinear, FusedLinear

# Rows from which sorting tokens by expert is cheaper than fetching an expert's weights again for each of them.
_SORT_FROM = 64
_BATCH_FROM = 128
"""Rows from which a batch of dense products is faster on CUDA than MLX's gathered one (benchmarks/LOG.md, 5)."""
_ROUND = 64  # rows of each expert's share of the batch are a multiple of this
_MOST = 4  # rows of the batch for each row that is wanted, at most: experts are never used equally


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
        share = self._share(indices) if _batches(indices.size) else None
        return self._sorted(x, indices) if share is None else self._batched(x, indices, share)

    def _sorted(self, x: mx.array, indices: mx.array) -> mx.array:
        k = indices.shape[-1]
        flat = indices.flatten()
        order = mx.argsort(flat)
        y = x.reshape(-1, 1, x.shape[-1])[order // k]
        y = self._feed(y, flat[order], True)
        # Back in order first, shaped after: the gradient of a squeeze has strides that MLX 0.32's CUDA backend misreads
        # in a sorted product, and the gradients of all that lies before would be wrong.
        return y[mx.argsort(order)].reshape(*indices.shape, -1)

    def _share(self, indices: mx.array) -> int | None:
        """Rows of the busiest expert, rounded up; None where nothing can be evaluated, or a batch would waste too much.

        The host waits for the router here, once a layer, because the batch's shape depends on it.
        """
        try:
            most = int(self._counts(indices.flatten()).max().item())  # type: ignore[arg-type]
        except (RuntimeError, ValueError):  # while a transformation traces
            return None
        share = -(-most // _ROUND) * _ROUND
        return share if share * self._count <= _MOST * max(indices.size, _ROUND * self._count) else None

    def _counts(self, flat: mx.array) -> mx.array:
        """How many rows each expert has, ``[experts]``."""
        return mx.sum(flat[None] == mx.arange(self._count, dtype=flat.dtype)[:, None], axis=1)

    def _batched(self, x: mx.array, indices: mx.array, share: int) -> mx.array:
        """All experts at once, ``[experts, share, …]``; what an expert does not fill holds any token's numbers."""
        flat = indices.flatten()
        order = mx.argsort(flat)
        expert = flat[order]
        counts = self._counts(flat)
        first = mx.cumsum(counts) - counts
        place = expert * share + mx.arange(flat.size) - first[expert]  # of each row, in order of experts
        place = place.astype(mx.uint32)  # MLX's CUDA backend scatters no 64-bit integers
        source = mx.zeros((self._count * share,), mx.uint32)
        source[place] = (order // indices.shape[-1]).astype(mx.uint32)
        y = x.reshape(-1, x.shape[-1])[source].reshape(self._count, share, -1)
        y = self.down_proj(swiglu(self.gate_up_proj.joined(y)))
        back = mx.zeros((flat.size,), mx.uint32)
        back[order] = place
        return y.reshape(-1, y.shape[-1])[back].reshape(*indices.shape, -1)

    def _feed(self, x: mx.array, indices: mx.array, in_order: bool) -> mx.array:
        return self.down_proj(swiglu(self.gate_up_proj.joined(x, indices, in_order)), indices, in_order)


def _batches(rows: int) -> bool:
    return rows >= _BATCH_FROM and backend() == "cuda"
