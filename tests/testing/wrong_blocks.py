"""Mistakes in blocks: attention, positions, caches, norms, residuals, experts."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.nn import MLP, Attention, Experts, RoPE
from core.nn.attention import _heads
from plugins.mistral.block import Block as MistralBlock
from plugins.mixtral.moe import SparseMoE


class _Attention(Attention):
    """``core.nn.Attention``, taken apart so that each step can be got wrong."""

    def __call__(self, x: mx.array, step: Any) -> mx.array:
        q, k, v = self.qkv_proj(x)
        q = self.rotated(_heads(q, self.num_attention_heads), step)
        k = self.rotated_keys(_heads(k, self.num_key_value_heads), step)
        y = self.attend(q, k, _heads(v, self.num_key_value_heads), step)
        return self.o_proj(y.swapaxes(1, 2).flatten(2))

    def rotated(self, x: mx.array, step: Any) -> mx.array:
        return self.rope(x, step.positions)

    def rotated_keys(self, x: mx.array, step: Any) -> mx.array:
        return self.rotated(x, step)

    def attend(self, q: mx.array, k: mx.array, v: mx.array, step: Any) -> mx.array:
        return step.attend(q, k, v, scale=self.head_dim**-0.5, window=self.sliding_window)


class NoScale(_Attention):
    def attend(self, q: mx.array, k: mx.array, v: mx.array, step: Any) -> mx.array:
        return step.attend(q, k, v, scale=1.0, window=self.sliding_window)


class NoMask(_Attention):
    def attend(self, q: mx.array, k: mx.array, v: mx.array, step: Any) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5)


class NoCache(_Attention):
    def attend(self, q: mx.array, k: mx.array, v: mx.array, step: Any) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5, mask="causal")


class TiledHeads(_Attention):
    """Query head h attends with key head h % n, instead of h // (heads / n)."""

    def attend(self, q: mx.array, k: mx.array, v: mx.array, step: Any) -> mx.array:
        shared = self.num_key_value_heads
        order = mx.argsort(mx.arange(self.num_attention_heads) % shared)
        y = super().attend(q[:, order], k, v, step)
        return y[:, mx.argsort(order)]


class NoRotation(_Attention):
    def rotated(self, x: mx.array, step: Any) -> mx.array:
        return x


class KeysNotRotated(_Attention):
    def rotated_keys(self, x: mx.array, step: Any) -> mx.array:
        return x


class AlwaysFromZero(_Attention):
    def rotated(self, x: mx.array, step: Any) -> mx.array:
        return self.rope(x, mx.zeros_like(step.positions))


class OneTooFarWhenCached(_Attention):
    def rotated(self, x: mx.array, step: Any) -> mx.array:
        return self.rope(x, mx.where(step.positions > 0, step.positions + 1, step.positions))


class FirstRowsPosition(_Attention):
    def rotated(self, x: mx.array, step: Any) -> mx.array:
        return self.rope(x, mx.broadcast_to(step.positions[:1], step.positions.shape))


class Frozen(_Attention):
    def __call__(self, x: mx.array, step: Any) -> mx.array:
        return mx.stop_gradient(super().__call__(x, step))


class AsksForANumber(_Attention):
    def rotated(self, x: mx.array, step: Any) -> mx.array:
        return x if mx.max(mx.abs(x)).item() == 0 else super().rotated(x, step)


def attention(kind: type[Attention]) -> Any:
    """Makes a block's attention one of the above."""

    def change(block: nn.Module, _config: Any) -> None:
        block.self_attn.__class__ = kind

    return change


class SeesOtherRows(MistralBlock):
    def __call__(self, x: mx.array, step: Any) -> mx.array:
        y = super().__call__(x, step)
        return y + 0.1 * (y - mx.mean(y, axis=0, keepdims=True))


class Remembers(MistralBlock):
    """Adds a little of what it saw in the call before."""

    def __call__(self, x: mx.array, step: Any) -> mx.array:
        y = super().__call__(x, step)
        before = self.__dict__.get("before", mx.zeros((1,)))
        self.__dict__["before"] = mx.mean(y)
        return y + 0.1 * before


class PostNorm(MistralBlock):
    def __call__(self, x: mx.array, step: Any) -> mx.array:
        x = x + self.input_layernorm(self.self_attn(x, step))
        return x + self.post_attention_layernorm(self.mlp(x))


class NoResidual(MistralBlock):
    def __call__(self, x: mx.array, step: Any) -> mx.array:
        x = self.self_attn(self.input_layernorm(x), step)
        return x + self.mlp(self.post_attention_layernorm(x))


class SkipsANorm(MistralBlock):
    def __call__(self, x: mx.array, step: Any) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), step)
        return x + self.mlp(x)


class Parallel(MistralBlock):
    """Attention and feed-forward beside each other."""

    def __call__(self, x: mx.array, step: Any) -> mx.array:
        return x + self.self_attn(self.input_layernorm(x), step) + self.mlp(self.post_attention_layernorm(x))


class RoundsWithin(MistralBlock):
    def __call__(self, x: mx.array, step: Any) -> mx.array:
        return super().__call__(x.astype(mx.float16).astype(x.dtype), step)


class Widens(MistralBlock):
    def __call__(self, x: mx.array, step: Any) -> mx.array:
        return super().__call__(x, step) + mx.zeros((1,), dtype=mx.float32)


def as_block(kind: type[nn.Module]) -> Any:
    """Makes the block one of the above."""

    def change(block: nn.Module, _config: Any) -> None:
        block.__class__ = kind

    return change


class Gelu(MLP):
    def __call__(self, x: mx.array) -> mx.array:
        gate, up = self.gate_up_proj(x)
        return self.down_proj(nn.gelu(gate) * up)


def gelu(block: nn.Module, _config: Any) -> None:
    block.mlp.__class__ = Gelu


def rope(**changes: Any) -> Any:
    """Another rotary embedding; ``base`` is a factor on its theta, ``theta`` a constant."""
    factor, theta = changes.pop("base", None), changes.pop("theta", None)

    def change(block: nn.Module, config: Any) -> None:
        parameters = config.rope_parameters
        if factor or theta:
            other = parameters.rope_theta * factor if factor else theta
            parameters = parameters.model_copy(update={"rope_theta": other})
        block.self_attn.rope = RoPE(config.head_dim, parameters, config.max_position_embeddings, **changes)

    return change


def window(of: Any) -> Any:
    """Another window, in terms of the config's."""

    def change(block: nn.Module, config: Any) -> None:
        block.self_attn.sliding_window = of(config.sliding_window)

    return change


def constant_eps(block: nn.Module, _config: Any) -> None:
    block.input_layernorm.eps = 1e-6


class _MoE(SparseMoE):
    """Mixtral's mixture, taken apart."""

    def __call__(self, x: mx.array) -> mx.array:
        logits = self.gate(x).astype(mx.float32)
        chosen = mx.stop_gradient(self.choose(logits))
        return (self.experts(x, chosen) * self.weigh(logits, chosen).astype(x.dtype)[..., None]).sum(axis=-2)

    def choose(self, logits: mx.array) -> mx.array:
        k = self.num_experts_per_tok
        return mx.argpartition(-logits, kth=k - 1, axis=-1)[..., :k]

    def weigh(self, logits: mx.array, chosen: mx.array) -> mx.array:
        return mx.softmax(mx.take_along_axis(logits, chosen, axis=-1), axis=-1)


class SoftmaxBeforeTopK(_MoE):
    """The chosen experts' share of all: their weights do not sum to one."""

    def weigh(self, logits: mx.array, chosen: mx.array) -> mx.array:
        return mx.take_along_axis(mx.softmax(logits, axis=-1), chosen, axis=-1)


class NoSoftmax(_MoE):
    def weigh(self, logits: mx.array, chosen: mx.array) -> mx.array:
        return mx.take_along_axis(logits, chosen, axis=-1)


class WorstExperts(_MoE):
    def choose(self, logits: mx.array) -> mx.array:
        return super().choose(-logits)


class WeightsInAnotherOrder(_MoE):
    def weigh(self, logits: mx.array, chosen: mx.array) -> mx.array:
        return mx.sort(super().weigh(logits, chosen), axis=-1)


class AlwaysTwo(_MoE):
    def choose(self, logits: mx.array) -> mx.array:
        return mx.argpartition(-logits, kth=1, axis=-1)[..., :2]


class NotPutBack(Experts):
    """Sorted by expert, and left so."""

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        if indices.size < 64:
            return super().__call__(x, indices)
        flat = indices.flatten()
        order = mx.argsort(flat)
        y = x.reshape(-1, 1, x.shape[-1])[order // indices.shape[-1]]
        return self._feed(y, flat[order], True).reshape(*indices.shape, -1)


def mixture(kind: type[SparseMoE]) -> Any:
    """Makes a Mixtral block's mixture one of the above."""

    def change(block: nn.Module, _config: Any) -> None:
        block.block_sparse_moe.__class__ = kind

    return change


def experts(block: nn.Module, _config: Any) -> None:
    block.block_sparse_moe.experts.__class__ = NotPutBack
