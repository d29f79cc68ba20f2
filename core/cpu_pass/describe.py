"""Describes a model to the CPU library: its matrices and its numbers; or says why the library cannot compute it.

Modules are recognised by their exact type. MLX computes everything else: subclasses, adapters that replace a layer, and
blocks that do not state their parts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.cpu.arrays import FLOAT_TYPES, address, known_address
from core.cpu.structures import AFFINE, EXACT, MXFP4, Layer, Matrix, Model, precision_of
from core.cpu_pass.description import Basis, Description
from core.cpu_pass.sizes import UnsupportedError, check_head, check_layer, check_size
from core.nn.attention import Attention
from core.nn.experts import Experts
from core.nn.linear import ExpertLinear, FusedLinear, Linear
from core.nn.mlp import MLP
from core.nn.parts import PreNorm, SparseExperts, stated_parts
from core.nn.quantized import QuantizedExpertLinear, QuantizedLinear
from core.nn.rope import RoPE

_MOST_EXPERTS = 512
_MOST_SHARING = 48  # query heads of one key head: QUERIES in attention.c
_LINEARS = (nn.Linear, Linear), (nn.QuantizedLinear, QuantizedLinear)
_EXPERTS = (ExpertLinear,), (QuantizedExpertLinear,)
_EMBEDDINGS = (nn.Embedding,), (nn.QuantizedEmbedding,)


def describe(decoder: nn.Module, basis: Basis) -> Description:
    """Describes a decoder, whose parameters are evaluated for that.

    Args:
        decoder: the model.
        basis: of this decoder and empty; notes what the description, or the refusal, is made from.

    Raises:
        UnsupportedError: what the library does not compute.
    """
    return _Describer(decoder, basis).description


class _Describer:
    def __init__(self, decoder: nn.Module, basis: Basis) -> None:
        self._basis = basis
        self._held: list[object] = [basis]
        self._ropes: list[RoPE] = []
        self._windows: list[int | None] = []
        self._precision = EXACT
        self._experts = 0  # of the layer at hand
        model = Model()
        model.embedding = model.head = self._matrix(self._child(decoder, "embed_tokens"), _EMBEDDINGS)
        model.hidden = self._hidden = model.embedding.columns
        if "lm_head" in decoder:
            model.head = self._matrix(self._child(decoder, "lm_head"), _LINEARS)
            check_head(model.head, self._hidden)
        else:
            basis.see(decoder, "lm_head", None)
        model.norm, model.epsilon = self._norm(self._child(decoder, "norm"))
        basis.end_of_head()
        blocks = self._child(decoder, "layers")
        for index in range(len(blocks) + 1):  # and that there is none behind them
            basis.see_item(blocks, index)
        layers = (Layer * len(blocks))(*[self._layer(block) for block in blocks])
        model.layers, model.layer, model.precision = len(blocks), ctypes.addressof(layers), self._precision
        self.description = Description(model, self._ropes, self._windows, layers, self._held)

    def _child(self, module: nn.Module, name: str) -> Any:
        """A part of a module, which must stay the same object."""
        value = module[name]
        self._basis.see(module, name, value)
        return value

    def _setting(self, module: object, name: str) -> Any:
        value = getattr(module, name)
        self._basis.see(vars(module), name, value)
        return value

    def _layer(self, block: nn.Module) -> Layer:
        parts = stated_parts(block)
        if not isinstance(parts, PreNorm):
            raise UnsupportedError(f"blocks of type {type(block).__name__}, which do not state their parts")
        for name, child in block.items():
            self._basis.see(block, name, child)
        attention = parts.attention
        if type(attention) is not Attention:
            raise UnsupportedError(f"attention of type {type(attention).__name__}")
        layer = Layer()
        layer.attention_norm, layer.attention_epsilon = self._norm(parts.attention_norm)
        layer.feed_forward_norm, layer.feed_forward_epsilon = self._norm(parts.feed_forward_norm)
        layer.heads = self._setting(attention, "num_attention_heads")
        layer.kv_heads = self._setting(attention, "num_key_value_heads")
        layer.head_dim = self._setting(attention, "head_dim")
        if layer.heads > _MOST_SHARING * layer.kv_heads:
            raise UnsupportedError(
                f"{layer.heads // layer.kv_heads} query heads of one key head (at most {_MOST_SHARING} are supported)"
            )
        layer.scale = layer.head_dim**-0.5
        layer.rotation = _place(self._ropes, self._rope(attention))
        layer.view = _place(self._windows, self._setting(attention, "sliding_window"))
        layer.qkv = self._whole(self._child(attention, "qkv_proj"), _LINEARS)
        layer.output = self._matrix(self._child(attention, "o_proj"), _LINEARS)
        feed_forward = self._feed_forward(parts.feed_forward, layer)
        kinds = _EXPERTS if layer.experts else _LINEARS
        layer.gate_up = self._whole(self._child(feed_forward, "gate_up_proj"), kinds)
        layer.down = self._matrix(self._child(feed_forward, "down_proj"), kinds)
        check_layer(layer, self._hidden, self._ropes[layer.rotation].dims)
        return layer

    def _feed_forward(self, module: nn.Module, layer: Layer) -> nn.Module:
        if type(module) is MLP:
            return module
        parts = stated_parts(module)
        if not isinstance(parts, SparseExperts) or type(parts.experts) is not Experts:
            raise UnsupportedError(f"a feed-forward layer of type {type(module).__name__}")
        for holder in (module, vars(module)):  # its layers, and how many experts a token uses
            for name, value in holder.items():
                self._basis.see(holder, name, value)
        router = parts.router
        if not isinstance(router, nn.Linear) or type(router).__call__ is not nn.Linear.__call__:
            raise UnsupportedError(f"a router of type {type(router).__name__}")
        layer.router = self._matrix(router, ((type(router),), ()))
        layer.experts, layer.chosen = layer.router.rows, parts.experts_per_token
        self._experts = layer.experts
        if layer.experts > _MOST_EXPERTS:
            raise UnsupportedError(f"{layer.experts} experts (at most {_MOST_EXPERTS} are supported)")
        return parts.experts

    def _rope(self, attention: Attention) -> RoPE:
        rope = self._setting(attention, "rope")
        if type(rope) is not RoPE:
            raise UnsupportedError(f"a rotary embedding of type {type(rope).__name__}")
        return next((one for one in self._ropes if one is rope or _same(one, rope)), rope)

    def _whole(self, fused: nn.Module, kinds: tuple[tuple[type, ...], tuple[type, ...]]) -> Matrix:
        if type(fused) is not FusedLinear:
            raise UnsupportedError(f"a projection of type {type(fused).__name__}")
        linears = self._child(fused, "linears")
        if len(linears) != 1:
            raise UnsupportedError("projections of one input that are quantized differently")
        self._basis.see_item(linears, 0)
        return self._matrix(linears[0], kinds)

    def _matrix(self, module: nn.Module, kinds: tuple[tuple[type, ...], tuple[type, ...]]) -> Matrix:
        plain, packed = kinds
        if type(module) not in (*plain, *packed):
            raise UnsupportedError(f"a layer of type {type(module).__name__}")
        weight = self._child(module, "weight")
        matrix = Matrix(weight=self._address(weight), rows=weight.shape[-2], columns=weight.shape[-1])
        if weight.ndim > 2 and weight.shape[0] != self._experts:
            raise UnsupportedError(f"{weight.shape[0]} experts of a router's {self._experts}")
        if type(module) in plain:
            matrix.type = self._float_type(weight)
        else:
            self._packed(module, matrix)
        if "bias" in module:
            if weight.ndim > 2:
                raise UnsupportedError("experts with biases")
            bias = self._child(module, "bias")
            check_size("a bias", bias, matrix.rows)
            matrix.bias = self._floats(bias)
        else:
            self._basis.see(module, "bias", None)
        return matrix

    def _packed(self, module: nn.Module, matrix: Matrix) -> None:
        bits, group = self._setting(module, "bits"), self._setting(module, "group_size")
        mode = self._setting(module, "mode")
        if (mode, bits, group) != ("mxfp4", 4, 32) and mode != "affine":
            raise UnsupportedError(f"quantization of the mode {mode}")
        scales = self._child(module, "scales")
        weight_rows = module["weight"].size // matrix.columns
        matrix.columns = matrix.columns * 32 // bits
        matrix.bits, matrix.group = bits, group
        matrix.type = AFFINE if mode == "affine" else MXFP4
        matrix.scales = self._address(scales)
        check_size("scales", scales, weight_rows * matrix.columns // group)
        if mode == "affine":
            biases = self._child(module, "biases")
            matrix.scale_type = self._float_type(scales)
            if (biases.dtype, biases.shape) != (scales.dtype, scales.shape):
                raise UnsupportedError("scales and biases of different dtypes or shapes")
            matrix.biases = self._address(biases)

    def _norm(self, module: nn.Module) -> tuple[int, float]:
        if type(module) is not nn.RMSNorm:
            raise UnsupportedError(f"a norm of type {type(module).__name__}")
        weight = self._child(module, "weight")
        check_size("a norm", weight, self._hidden)
        self._precision = max(self._precision, precision_of(weight.dtype))
        return self._floats(weight), self._setting(module, "eps")

    def _float_type(self, array: mx.array) -> int:
        if array.dtype not in FLOAT_TYPES:
            raise UnsupportedError(f"parameters in {str(array.dtype).rpartition('.')[2]}")
        self._precision = max(self._precision, precision_of(array.dtype))
        return FLOAT_TYPES[array.dtype]

    def _floats(self, array: mx.array) -> int:
        """The address of a small array's numbers in float32; a copy where it is in another dtype."""
        at = self._address(array)
        if array.dtype == mx.float32:
            return at
        wide = array.astype(mx.float32)
        self._held.append(wide)
        return known_address(wide)

    def _address(self, array: mx.array) -> int:
        found = address(array)
        if found is None:
            raise UnsupportedError("a parameter that is not contiguous in memory")
        self._basis.see_array(array, found)
        return found


def _place(values: list[Any], value: object) -> int:
    """Where a value is in a list, to which it is added if it is not there."""
    for index, one in enumerate(values):
        if one is value or one == value:
            return index
    values.append(value)
    return len(values) - 1


def _same(a: RoPE, b: RoPE) -> bool:
    """Whether two embeddings rotate alike."""
    settings: Callable[[RoPE], tuple[object, ...]] = lambda rope: (  # noqa: E731
        rope.dims,
        rope.parameters,
        rope.traditional,
        rope.attention_factor,
        rope.limit,
    )
    return settings(a) == settings(b)
