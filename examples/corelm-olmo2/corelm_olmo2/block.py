"""One OLMo 2 block: attention, then feed-forward, each followed by a norm and added to the residual stream."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.nn import MLP, Step

from .attention import NormedAttention
from .config import Olmo2Config


class Block(nn.Module):
    def __init__(self, config: Olmo2Config) -> None:
        super().__init__()
        self.self_attn = NormedAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)
        self.post_feedforward_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, step: Step) -> mx.array:
        """``x``: ``[batch, seq, hidden_size]``; returns the same shape."""
        x = x + self.post_attention_layernorm(self.self_attn(x, step))
        return x + self.post_feedforward_layernorm(self.mlp(x))
