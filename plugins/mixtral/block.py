"""One Mixtral block: attention, then the mixture of experts, each after a norm and added to the residual stream."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.nn import Attention, PreNorm, RoPE, Step

from .config import MixtralConfig
from .moe import SparseMoE


class Block(nn.Module):
    def __init__(self, config: MixtralConfig) -> None:
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
        self.block_sparse_moe = SparseMoE(
            config.hidden_size, config.intermediate_size, config.num_local_experts, config.num_experts_per_tok
        )

    def __call__(self, x: mx.array, step: Step) -> mx.array:
        """``x``: ``[batch, seq, hidden_size]``; returns the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), step)
        return x + self.block_sparse_moe(self.post_attention_layernorm(x))

    def parts(self) -> PreNorm:
        """The modules of the formula in ``__call__``."""
        return PreNorm(self.input_layernorm, self.self_attn, self.post_attention_layernorm, self.block_sparse_moe)
