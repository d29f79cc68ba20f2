"""The gated feed-forward layer, SwiGLU (Shazeer, 2020)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.kernels import swiglu
from core.nn.linear import FusedLinear, Linear


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
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        """``x``: ``[..., hidden_size]``; returns the same shape."""
        return self.down_proj(swiglu(self.gate_up_proj.joined(x)))
