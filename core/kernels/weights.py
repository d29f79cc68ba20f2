"""What a matrix of weights, or a stack of them, is made of: floats, or quantized integers with scales and biases.

The settings of a quantized matrix are read off the shapes of its arrays and of what is multiplied by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from core.cpu.arrays import FLOAT_TYPES
from core.cpu.products import dense_matrix, packed_matrix
from core.cpu.structures import Matrix

FLOATS = frozenset(FLOAT_TYPES)
_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)
_ROWS, _COLUMNS = 37, 70  # of the matrices of samples


class Packing(NamedTuple):
    """Settings of a quantized matrix."""

    bits: int
    group_size: int


MXFP4 = Packing(4, 32)


def packing(x: mx.array, weight: mx.array, scales: mx.array) -> Packing | None:
    """The settings with which arrays of these shapes fit each other; None where there are none."""
    columns, bits, groups = x.shape[-1], weight.shape[-1] * 32, scales.shape[-1]
    if bits % columns or columns % groups or scales.shape[:-1] != weight.shape[:-1]:
        return None
    return Packing(bits // columns, columns // groups)


@dataclass(frozen=True)
class Format:
    """A way to store weights; its functions take ``x [..., columns]`` and the arrays of the weights.

    Attributes:
        name: for kernels.
        takes: whether shapes and dtypes are ones that the CPU library multiplies by.
        settings: the settings of packed weights; None for floats.
        matrix: describes evaluated arrays to the CPU library; None where they are not contiguous.
        floats: the weights as float32.
        samples: random weights of every kind, ``(key, matrices)`` to their columns and arrays; ``matrices`` is the
            shape of a stack, empty for one matrix.
    """

    name: str
    takes: Callable[..., bool]
    settings: Callable[..., Packing | None]
    matrix: Callable[..., Matrix | None]
    floats: Callable[..., mx.array]
    samples: Callable[[mx.array, tuple[int, ...]], list[tuple[int, tuple[mx.array, ...]]]]


def _takes_dense(x: mx.array, weight: mx.array) -> bool:
    return {x.dtype, weight.dtype} <= FLOATS and x.shape[-1] == weight.shape[-1]


def _takes_affine(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> bool:
    found = packing(x, weight, scales)
    same = (scales.dtype, scales.shape) == (biases.dtype, biases.shape)
    types = {x.dtype, scales.dtype} <= FLOATS and weight.dtype == mx.uint32
    return same and types and found is not None and found.bits in _BITS and found.group_size in _GROUPS


def _takes_mxfp4(x: mx.array, weight: mx.array, scales: mx.array) -> bool:
    types = x.dtype in FLOATS and (weight.dtype, scales.dtype) == (mx.uint32, mx.uint8)
    return types and packing(x, weight, scales) == MXFP4


def _affine_floats(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
    found = packing(x, weight, scales)
    assert found is not None
    return mx.dequantize(weight, scales.astype(mx.float32), biases.astype(mx.float32), found.group_size, found.bits)


def _mxfp4_floats(_x: mx.array, weight: mx.array, scales: mx.array) -> mx.array:
    return mx.dequantize(weight, scales, None, MXFP4.group_size, MXFP4.bits, "mxfp4").astype(mx.float32)


def _dense_samples(key: mx.array, matrices: tuple[int, ...]) -> list[tuple[int, tuple[mx.array, ...]]]:
    weight = mx.random.normal((*matrices, _ROWS, _COLUMNS), scale=_COLUMNS**-0.5, key=key)
    return [(_COLUMNS, (weight.astype(dtype),)) for dtype in FLOAT_TYPES]


def _affine_samples(key: mx.array, matrices: tuple[int, ...]) -> list[tuple[int, tuple[mx.array, ...]]]:
    found: list[tuple[int, tuple[mx.array, ...]]] = []
    for bits in _BITS:
        for group_size in _GROUPS:
            key, *keys = mx.random.split(key, 3)
            columns = 3 * group_size
            weight = _words(keys[0], (*matrices, _ROWS, columns * bits // 32))
            size = (2 ** (bits - 1) * columns**0.5) ** -1  # results near 1
            scales, biases = mx.random.normal((2, *matrices, _ROWS, 3), scale=size, key=keys[1])
            found += [(columns, (weight, scales.astype(dtype), biases.astype(dtype))) for dtype in FLOAT_TYPES]
    return found


def _mxfp4_samples(key: mx.array, matrices: tuple[int, ...]) -> list[tuple[int, tuple[mx.array, ...]]]:
    columns, keys = 3 * MXFP4.group_size, mx.random.split(key)
    exponents = mx.random.randint(122, 125, (*matrices, _ROWS, 3), key=keys[0]).astype(mx.uint8)  # results near 1
    return [(columns, (_words(keys[1], (*matrices, _ROWS, columns // 8)), exponents))]


def _words(key: mx.array, shape: tuple[int, ...]) -> mx.array:
    low, high = mx.random.randint(0, 1 << 16, (2, *shape), dtype=mx.uint32, key=key)
    return low | (high << 16)


def _affine_matrix(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> Matrix | None:
    return packed_matrix(weight, scales, biases, x.shape[-1])


def _mxfp4_matrix(x: mx.array, weight: mx.array, scales: mx.array) -> Matrix | None:
    return packed_matrix(weight, scales, None, x.shape[-1])


def _affine_settings(x: mx.array, weight: mx.array, scales: mx.array, _biases: mx.array) -> Packing | None:
    return packing(x, weight, scales)


DENSE = Format(
    "dense",
    _takes_dense,
    settings=lambda _x, _weight: None,
    matrix=lambda _x, weight: dense_matrix(weight),
    floats=lambda _x, weight: weight.astype(mx.float32),
    samples=_dense_samples,
)
AFFINE = Format("affine", _takes_affine, _affine_settings, _affine_matrix, _affine_floats, _affine_samples)
MXFP4_FORMAT = Format("mxfp4", _takes_mxfp4, packing, _mxfp4_matrix, _mxfp4_floats, _mxfp4_samples)
