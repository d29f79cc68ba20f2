"""The gated feed-forward layer, SwiGLU (Shazeer, 2020), dense and as a set of experts."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.kernels import swiglu
from core.nn.linear import ExpertLinear, FusedLinear

# Rows from which sorting tokens by expert is cheaper than fetching an expert's weights again for each of them.
_SORT_FROM = 64


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``.

    Args:
        hidden_size: features of the residual stream.
        intermediate_size: features of the gate.
        bias: add biases to all three projections.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool = False) -> None:
        super().__init__()
        parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up_proj = FusedLinear(hidden_size, parts, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        """``x``: ``[..., hidden_size]``; returns the same shape."""
        return self.down_proj(swiglu(self.gate_up_proj.joined(x)))


class Experts(nn.Module):
    """Many SwiGLU layers, of which each token uses a few.

    Args:
        num_experts: layers.
        hidden_size, intermediate_size: features, as in ``MLP``.
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
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
        k = indices.shape[-1]
        flat = indices.flatten()
        order = mx.argsort(flat)
        y = x.reshape(-1, 1, x.shape[-1])[order // k]
        y = self._feed(y, flat[order], True)
        # Back in order first, shaped after: the gradient of a squeeze has strides that MLX 0.32's CUDA backend misreads
        # in a sorted product, and the gradients of all that lies before would be wrong.
        return y[mx.argsort(order)].reshape(*indices.shape, -1)

    def _feed(self, x: mx.array, indices: mx.array, in_order: bool) -> mx.array:
        return self.down_proj(swiglu(self.gate_up_proj.joined(x, indices, in_order)), indices, in_order)
