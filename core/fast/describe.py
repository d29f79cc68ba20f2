"""A model as a fast step sees it: its shape and its arrays in the step's order, or why there is no step for it.

Everything is recognised by exact type: a subclass, an adapter in a layer's place, or a block that does not state its
parts means the ordinary path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.fast.layout import FIELDS
from core.fast.shape import StepShape
from core.nn import (
    MLP,
    Attention,
    Cache,
    Decoder,
    ExpertLinear,
    Experts,
    FusedLinear,
    Linear,
    PreNorm,
    QuantizedExpertLinear,
    QuantizedLinear,
    RoPE,
    SparseExperts,
)
from core.nn.cache import KeyValues
from core.nn.parts import stated_parts
from core.nn.span import Limit

_GROUP_SIZE = 64
_LINEARS = (nn.Linear, Linear), (nn.QuantizedLinear, QuantizedLinear)
_EXPERTS = (ExpertLinear,), (QuantizedExpertLinear,)
_EMBEDDINGS = (nn.Embedding,), (nn.QuantizedEmbedding,)
_ROTARY_TYPES = ("default", "linear", "llama3", "yarn")


class Unsupported(Exception):  # noqa: N818 - it is no error: the ordinary path serves
    """No fast step for this model; the message says why, to follow "because of"."""


@dataclass(frozen=True)
class Description:
    """What a step is generated from and works on.

    Attributes:
        fields: arrays in the order of the step's table; None where there is none, and at keys and values.
        frequencies: float32 ``[head_dim / 2]``, radians a position.
        kinds: for each kind of cache, the window of its span (None: full).
    """

    shape: StepShape
    fields: tuple[mx.array | None, ...]
    frequencies: mx.array
    kinds: tuple[int | None, ...]


def describe(model: object, cache: Cache) -> Description:
    """Reads a model and its cache.

    Raises:
        Unsupported: what it says about the model.
    """
    if type(model) is not Decoder:
        raise Unsupported(f"a model of type {type(model).__name__}")
    if len(cache.blocks) != len(model.layers):
        raise Unsupported("a cache of another model")
    fields: list[mx.array | None] = []
    layers, kinds, cache_kinds = [], [], []
    for block, held in zip(model.layers, cache.blocks, strict=True):
        layer = _layer(block)
        layers.append(layer.shape)
        fields += layer.fields
        if not isinstance(held, KeyValues) or held.spec.dtype not in (None, mx.bfloat16):
            raise Unsupported("a cache that keeps something else than bfloat16 keys and values")
        if isinstance(held.reach, Limit):
            raise Unsupported("a cache with max_kv_tokens")
        kind = held.spec.window, layer.window
        if kind not in kinds:
            kinds.append(kind)
        cache_kinds.append(kinds.index(kind))
    if len(set(layers)) != 1:
        raise Unsupported("layers that differ in shape or quantization")
    (widths, sizes, epsilons, rotary), frequencies = layers[0], layer.frequencies
    tied = "lm_head" not in model
    embedding, embedding_width = _matrix(model.embed_tokens, _EMBEDDINGS)
    head, head_width = (embedding, embedding_width) if tied else _matrix(model.lm_head, _LINEARS)
    norm, epsilon = _norm(model.norm)
    fields += [*head, norm, *embedding, None]
    shape = StepShape(
        batch=cache.batch,
        **dict(sizes),
        vocabulary=model.vocab_size,
        widths=(*widths, head_width),
        embedding_width=embedding_width,
        epsilons=(*epsilons, epsilon),
        rotary_factor=rotary[-1],
        windows=tuple(window or 0 for _, window in kinds),
        cache_kinds=tuple(cache_kinds),
        tied=tied,
    )
    return Description(shape, tuple(fields), frequencies, tuple(window for window, _ in kinds))


@dataclass(frozen=True)
class _Layer:
    shape: tuple[Any, ...]  # what must be the same in all layers
    fields: list[mx.array | None]
    window: int | None
    frequencies: mx.array


def _layer(block: nn.Module) -> _Layer:
    parts = stated_parts(block)
    if not isinstance(parts, PreNorm):
        raise Unsupported(f"blocks of type {type(block).__name__}, which do not state their parts")
    attention = parts.attention
    if type(attention) is not Attention:
        raise Unsupported(f"attention of type {type(attention).__name__}")
    mlp, router, chosen = _feed_forward(parts.feed_forward)
    linears = _EXPERTS if router is not None else _LINEARS
    attention_norm, attention_epsilon = _norm(parts.attention_norm)
    mlp_norm, mlp_epsilon = _norm(parts.feed_forward_norm)
    matrices = [
        _matrix(_whole(attention.qkv_proj), _LINEARS),
        _matrix(attention.o_proj, _LINEARS),
        _matrix(_whole(mlp.gate_up_proj), linears),
        _matrix(mlp.down_proj, linears),
    ]
    rotary, frequencies = _rotary(attention.rope, attention.head_dim)
    sizes = {
        "hidden": attention_norm.size,
        "intermediate": mlp.gate_up_proj.parts["gate_proj"],
        "heads": attention.num_attention_heads,
        "kv_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
        "experts": 0 if router is None else router.shape[0],
        "chosen": chosen,
    }
    shape = (
        tuple(width for _, width in matrices),
        tuple(sizes.items()),
        (attention_epsilon, mlp_epsilon),
        rotary,
    )
    fields = [attention_norm, mlp_norm, None, None, *(array for arrays, _ in matrices for array in arrays), router]
    assert len(fields) == FIELDS
    return _Layer(shape, fields, attention.sliding_window, frequencies)


def _feed_forward(module: nn.Module) -> tuple[nn.Module, mx.array | None, int]:
    """The SwiGLU layer or layers, the router's matrix, and how many experts a token uses."""
    if type(module) is MLP:
        return module, None, 1
    parts = stated_parts(module)
    if not isinstance(parts, SparseExperts) or type(parts.experts) is not Experts:
        raise Unsupported(f"a feed-forward layer of type {type(module).__name__}")
    router = parts.router
    if not isinstance(router, nn.Linear) or type(router).__call__ is not nn.Linear.__call__ or "bias" in router:
        raise Unsupported(f"a router of type {type(router).__name__}")
    return parts.experts, _bfloat16(router.weight), parts.experts_per_token


def _whole(fused: nn.Module) -> nn.Module:
    if type(fused) is not FusedLinear:
        raise Unsupported(f"a projection of type {type(fused).__name__}")
    if len(fused.linears) != 1:
        raise Unsupported("projections of one input that are quantized differently")
    return fused.linears[0]


def _matrix(module: nn.Module, types: tuple[tuple[type, ...], tuple[type, ...]]) -> tuple[list[mx.array | None], int]:
    """Weight, scales and biases, and bits of a weight."""
    plain, quantized = types
    if "bias" in module:
        raise Unsupported("a projection with a bias")
    if type(module) in plain:
        return [_bfloat16(module.weight), None, None], 16
    if type(module) not in quantized:
        raise Unsupported(f"a layer of type {type(module).__name__}")
    if (module.group_size, module.mode) != (_GROUP_SIZE, "affine") or module.bits not in (4, 8):
        raise Unsupported(f"quantization to {module.bits} bits, {module.mode}, in groups of {module.group_size}")
    return [module.weight, _bfloat16(module.scales), _bfloat16(module.biases)], module.bits


def _norm(module: nn.Module) -> tuple[mx.array, float]:
    if type(module) is not nn.RMSNorm:
        raise Unsupported(f"a norm of type {type(module).__name__}")
    return _bfloat16(module.weight), module.eps


def _rotary(rope: object, head_dim: int) -> tuple[tuple[Any, ...], mx.array]:
    """What distinguishes one embedding from another, its factor last, and its frequencies."""
    if type(rope) is not RoPE:
        raise Unsupported(f"a rotary embedding of type {type(rope).__name__}")
    if rope.traditional or rope.dims != head_dim or rope.parameters.rope_type not in _ROTARY_TYPES:
        raise Unsupported("a rotary embedding of another form")
    key = (rope.parameters, rope.attention_factor)
    if rope.base is None:
        return key, 1.0 / rope._frequencies(mx.zeros((1,), mx.int32), 1)
    frequencies = [rope.scale * rope.base ** (-i / head_dim) for i in range(0, head_dim, 2)]
    return key, mx.array(frequencies, dtype=mx.float32)


def _bfloat16(array: mx.array) -> mx.array:
    if array.dtype != mx.bfloat16:
        raise Unsupported(f"parameters in {str(array.dtype).rpartition('.')[2]}")
    return array
