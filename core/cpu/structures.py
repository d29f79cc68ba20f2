"""The C structures of ``source/matrix.h`` and ``source/model.h``, field by field."""

from __future__ import annotations

import ctypes
from typing import ClassVar

import mlx.core as mx

_POINTER = ctypes.c_void_p
_LONG = ctypes.c_int64
_INT = ctypes.c_int32
_FLOAT = ctypes.c_float
Fields = list[tuple[str, type]]

AFFINE, MXFP4 = 3, 4
"""Values of ``Matrix.type`` beside those of floats (``core.cpu.arrays.FLOAT_TYPES``)."""
EXACT, CLOSE, ROUNDED = 0, 1, 2
"""How products of many rows are computed: in float32, or with factors rounded to bfloat16."""


class Matrix(ctypes.Structure):
    """A matrix of weights, or a stack of them."""

    _fields_: ClassVar[Fields] = [
        *((name, _POINTER) for name in ("weight", "scales", "biases", "bias")),
        *((name, _LONG) for name in ("rows", "columns")),
        *((name, _INT) for name in ("type", "bits", "group", "scale_type")),
    ]


class Product(ctypes.Structure):
    """Rows of numbers by the transpose of a matrix."""

    _fields_: ClassVar[Fields] = [
        ("matrix", _POINTER),
        ("expert", _LONG),
        ("x", _POINTER),
        ("y", _POINTER),
        *((name, _LONG) for name in ("m", "ldx", "ldy")),
    ]


class Layer(ctypes.Structure):
    """A pre-norm block."""

    _fields_: ClassVar[Fields] = [
        *((name, Matrix) for name in ("qkv", "output", "gate_up", "down", "router")),
        *((name, _POINTER) for name in ("attention_norm", "feed_forward_norm")),
        *((name, _FLOAT) for name in ("attention_epsilon", "feed_forward_epsilon", "scale")),
        *((name, _INT) for name in ("heads", "kv_heads", "head_dim", "experts", "chosen", "rotation", "view")),
    ]


class Model(ctypes.Structure):
    """A decoder: embedding, blocks, norm, head."""

    _fields_: ClassVar[Fields] = [
        ("embedding", Matrix),
        ("head", Matrix),
        ("norm", _POINTER),
        ("epsilon", _FLOAT),
        *((name, _INT) for name in ("layers", "hidden", "precision")),
        ("layer", _POINTER),
    ]


class Rotation(ctypes.Structure):
    """A rotary embedding, and room for its cosines and sines."""

    _fields_: ClassVar[Fields] = [
        ("frequencies", _POINTER),
        ("factor", _FLOAT),
        *((name, _INT) for name in ("dims", "traditional")),
        *((name, _POINTER) for name in ("cosines", "sines")),
    ]


class Run(ctypes.Structure):
    """Tokens that follow each other in one sequence of one cache."""

    _fields_: ClassVar[Fields] = [(name, _INT) for name in ("first", "count", "cache", "sequence")]


class View(ctypes.Structure):
    """What the blocks of one kind see of their caches."""

    _fields_: ClassVar[Fields] = [
        *((name, _POINTER) for name in ("slots", "slot")),
        *((name, _INT) for name in ("front", "recent")),
    ]


class Pass(ctypes.Structure):
    """One pass over some tokens."""

    _fields_: ClassVar[Fields] = [
        *((name, _POINTER) for name in ("tokens", "positions")),
        *((name, _INT) for name in ("rows", "runs", "caches", "rotations", "views")),
        *((name, _POINTER) for name in ("run", "rotation", "view", "keys", "values", "hidden")),
    ]


ALL = (Matrix, Product, Layer, Model, Rotation, Run, View, Pass)
"""In the order of ``corelm_size``."""


def precision_of(dtype: mx.Dtype) -> int:
    """How closely a product is computed whose weights, scales or numbers have this dtype; packed weights: ``EXACT``."""
    return {mx.bfloat16: ROUNDED, mx.float16: CLOSE}.get(dtype, EXACT)
