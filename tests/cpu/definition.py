"""A pre-norm block as it is defined, in float64 and NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.nn import Decoder

Array = np.ndarray


def logits(model: Decoder, ids: Sequence[int], window: int | None) -> Array:
    """Logits ``[tokens, vocabulary]`` of a model of ``tests.cpu.models.decoder`` with default rotary positions."""
    x = _numbers(model.embed_tokens.weight)[list(ids)]
    for block in model.layers:
        x = x + _attention(block.self_attn, _norm(block.input_layernorm, x), window)
        y = _norm(block.post_attention_layernorm, x)
        x = x + (_experts(block.block_sparse_moe, y) if "block_sparse_moe" in block else _dense(block.mlp, y))
    return _norm(model.norm, x) @ _numbers(model.lm_head.weight).T


def _numbers(array: Any) -> Array:
    return np.array(array).astype(np.float64)


def _norm(norm: Any, x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps) * _numbers(norm.weight)


def _attention(attention: Any, x: Array, window: int | None) -> Array:
    heads, kv_heads, dim = attention.num_attention_heads, attention.num_key_value_heads, attention.head_dim
    qkv = (x @ _numbers(attention.qkv_proj.linears[0].weight).T).reshape(len(x), heads + 2 * kv_heads, dim)
    q, k, v = np.split(qkv, [heads, heads + kv_heads], axis=1)
    q, k = (_rotated(part, attention.rope.parameters.rope_theta) for part in (q, k))
    out = np.zeros((len(x), heads, dim))
    for token in range(len(x)):
        first = 0 if window is None else max(0, token - window + 1)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = k[first : token + 1, shared] @ q[token, head] / np.sqrt(dim)
            weights = np.exp(scores - scores.max())
            out[token, head] = weights / weights.sum() @ v[first : token + 1, shared]
    return out.reshape(len(x), -1) @ _numbers(attention.o_proj.weight).T


def _rotated(x: Array, theta: float) -> Array:
    dim = x.shape[-1]
    angles = np.arange(len(x))[:, None] * theta ** (-np.arange(0, dim, 2) / dim)
    turn = np.exp(1j * angles)[:, None]
    turned = (x[..., : dim // 2] + 1j * x[..., dim // 2 :]) * turn
    return np.concatenate([turned.real, turned.imag], -1)


def _swiglu(x: Array, gate_up: Array, down: Array) -> Array:
    gate, up = np.split(x @ gate_up.T, 2, axis=-1)
    return (gate / (1 + np.exp(-gate)) * up) @ down.T


def _dense(mlp: Any, x: Array) -> Array:
    return _swiglu(x, _numbers(mlp.gate_up_proj.linears[0].weight), _numbers(mlp.down_proj.weight))


def _experts(moe: Any, x: Array) -> Array:
    gate_up, down = _numbers(moe.experts.gate_up_proj.linears[0].weight), _numbers(moe.experts.down_proj.weight)
    out = np.zeros_like(x)
    for token, scores in enumerate(x @ _numbers(moe.gate.weight).T):
        chosen = np.argsort(-scores, kind="stable")[: moe.num_experts_per_tok]
        weights = np.exp(scores[chosen] - scores[chosen].max())
        for expert, weight in zip(chosen, weights / weights.sum(), strict=True):
            out[token] += weight * _swiglu(x[token : token + 1], gate_up[expert], down[expert])[0]
    return out
