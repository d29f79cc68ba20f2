"""The sparse mixture of experts: a router that picks ``k`` experts for each token, and their weighted sum."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.nn import Experts, SparseExperts


class Router(nn.Linear):
    """Scores the experts for each token; a class of its own so that it can stay in full precision."""


class SparseMoE(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int, num_experts: int, num_experts_per_tok: int) -> None:
        super().__init__()
        self.num_experts_per_tok = num_experts_per_tok
        self.gate = Router(hidden_size, num_experts, bias=False)
        self.experts = Experts(num_experts, hidden_size, intermediate_size)

    def __call__(self, x: mx.array) -> mx.array:
        """``x``: ``[..., hidden_size]``; returns the same shape."""
        router_logits = self.gate(x).astype(mx.float32)
        k = self.num_experts_per_tok
        chosen = mx.stop_gradient(mx.argsort(-router_logits, axis=-1)[..., :k])
        # Softmax over the chosen logits equals transformers' softmax over all, chosen and renormalised. Sorted twice,
        # because MLX compiles for seconds on CUDA before it takes numbers by their places.
        weights = mx.softmax(-mx.sort(-router_logits, axis=-1)[..., :k], axis=-1).astype(x.dtype)
        return (self.experts(x, chosen) * weights[..., None]).sum(axis=-2)

    def parts(self) -> SparseExperts:
        """The modules of the formula in ``__call__``."""
        return SparseExperts(self.gate, self.experts, self.num_experts_per_tok)
