"""Grouped-query attention (Ainslie et al., 2023) with rotary positions and an optional sliding window."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from core.nn.linear import FusedLinear, Linear
from core.nn.rope import RoPE
from core.nn.step import Step


class Attention(nn.Module):
    """Causal self-attention.

    Args:
        hidden_size: features of the residual stream.
        num_attention_heads, num_key_value_heads: query heads, and the key/value heads they share in equal groups.
        head_dim: features of one head.
        rope: rotary embedding applied to queries and keys.
        sliding_window: keys that a query sees, itself included; None sees all.
        bias: add biases to the projections, of queries, keys, values and output.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_attention_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        rope: RoPE,
        sliding_window: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.sliding_window = sliding_window
        self.rope = rope
        queries, keys = num_attention_heads * head_dim, num_key_value_heads * head_dim
        self.qkv_proj = FusedLinear(hidden_size, {"q_proj": queries, "k_proj": keys, "v_proj": keys}, bias=bias)
        self.o_proj = Linear(queries, hidden_size, bias=bias)

    def __call__(self, x: mx.array, step: Step) -> mx.array:
        """``x``: ``[batch, seq, hidden_size]``; returns the same shape."""
        q, k, v = self.qkv_proj(x)
        return self.attend(q, k, v, step)

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, step: Step) -> mx.array:
        """Splits heads, rotates, attends, and applies the output projection.

        A subclass that changes the projections' outputs first, for example by norms, calls this from its own
        ``__call__``.

        Args:
            queries: ``[batch, seq, num_attention_heads * head_dim]``.
            keys, values: ``[batch, seq, num_key_value_heads * head_dim]``.
            step: of the block's call.

        Returns:
            ``[batch, seq, hidden_size]``.
        """
        q = self.rope(_heads(queries, self.num_attention_heads), step.positions)
        k = self.rope(_heads(keys, self.num_key_value_heads), step.positions)
        v = _heads(values, self.num_key_value_heads)
        y = step.attend(q, k, v, scale=self.head_dim**-0.5, window=self.sliding_window)
        return self.o_proj(y.swapaxes(1, 2).flatten(2))


def _heads(x: mx.array, heads: int) -> mx.array:
    """``[batch, seq, heads * head_dim]`` → ``[batch, heads, seq, head_dim]``."""
    return mx.unflatten(x, -1, (heads, -1)).swapaxes(1, 2)
