"""Products in float64, of weights unpacked by numpy, and how near the CPU library must come to them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from core.cpu import structures
from core.cpu.structures import CLOSE, EXACT, ROUNDED
from core.kernels.weights import AFFINE, DENSE, Format

DTYPES = (mx.float32, mx.bfloat16, mx.float16)
UNIT = {mx.float32: 2**-24, mx.bfloat16: 2**-8, mx.float16: 2**-11}
"""Half a unit in the last place: what rounding the result costs, relative."""
BOUND = {EXACT: 2**-20, CLOSE: 2**-12, ROUNDED: 2.01 * 2**-8}
"""The error of a sum, relative to the sum of its terms' sizes: float32, 16 bits a group, bfloat16."""


def wide(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def assert_product(y: mx.array | None, x: mx.array, floats: np.ndarray, precision: int) -> None:
    """``x`` [..., columns] and ``floats`` [..., rows, columns], leading axes broadcast."""
    assert y is not None
    x64 = wide(x)
    expected = x64 @ floats.swapaxes(-1, -2)
    sizes = np.abs(x64) @ np.abs(floats.swapaxes(-1, -2))
    assert y.shape == expected.shape
    error = np.abs(wide(y) - expected)
    allowed = BOUND[precision] * sizes + UNIT[y.dtype] * np.abs(expected) + 1e-7
    assert (error <= allowed).all(), f"{(error / allowed).max():.2f} of what is allowed"


def affine64(weight: mx.array, scales: mx.array, biases: mx.array, columns: int) -> np.ndarray:
    """What ``mx.quantize`` documents, in float64."""
    words = np.array(weight)
    bits = words.shape[-1] * 32 // columns
    stream = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    integers = stream.reshape(*words.shape[:-1], columns, bits) @ (1 << np.arange(bits))
    group = columns // scales.shape[-1]
    return integers * np.repeat(wide(scales), group, -1) + np.repeat(wide(biases), group, -1)


def mxfp4_64(weight: mx.array, scales: mx.array, columns: int) -> np.ndarray:
    """OCP Microscaling formats 1.0: E2M1 numbers, 32 of them with one power of two."""
    stream = np.unpackbits(np.array(weight).view(np.uint8), axis=-1, bitorder="little")
    codes = stream.reshape(*weight.shape[:-1], columns, 4) @ (1 << np.arange(4))
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes & 7] * np.where(codes & 8, -1, 1)
    return values * np.repeat(2.0 ** (np.array(scales).astype(int) - 127), 32, -1)


def floats_of(kind: Format, columns: int, weights: tuple[mx.array, ...]) -> np.ndarray:
    if kind is DENSE:
        return wide(weights[0])
    return affine64(*weights, columns) if kind is AFFINE else mxfp4_64(*weights, columns)


def precision_of(*arrays: mx.array) -> int:
    return max(structures.precision_of(a.dtype) for a in arrays)
