"""One Mistral block: attention, then feed-forward, each after a norm and added to the residual stream."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.nn import MLP, Attention, PreNorm, RoPE, Step

from .config import MistralConfig


class Block(nn.Module):
    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(
            config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rope=RoPE(config.head_dim, config.rope_parameters, config.max_position_embeddings),
            sliding_window=config.sliding_window,
        )
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def __call__(self, x: mx.array, step: Step) -> mx.array:
        """``x``: ``[batch, seq, hidden_size]``; returns the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), step)
        return x + self.mlp(self.post_attention_layernorm(x))

    def parts(self) -> PreNorm:
        """The modules of the formula in ``__call__``."""
        return PreNorm(self.input_layernorm, self.self_attn, self.post_attention_layernorm, self.mlp)
