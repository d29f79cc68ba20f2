"""Attention with norms on queries and keys, over all heads at once and before the rotation."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.nn import Attention, RoPE, Step

from .config import Olmo2Config


class NormedAttention(Attention):
    def __init__(self, config: Olmo2Config) -> None:
        super().__init__(
            config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rope=RoPE(config.head_dim, config.rope_parameters, config.max_position_embeddings),
            bias=config.attention_bias,
        )
        self.q_norm = nn.RMSNorm(config.num_attention_heads * config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.num_key_value_heads * config.head_dim, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, step: Step) -> mx.array:
        """``x``: ``[batch, seq, hidden_size]``; returns the same shape."""
        q, k, v = self.qkv_proj(x)
        return self.attend(self.q_norm(q), self.k_norm(k), v, step)
