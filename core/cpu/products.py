"""Products with a matrix of weights, or with matrices of a stack, computed at once by the CPU library.

Weights stay as they lie in memory; where one does not lie row after row, there is no product (None).
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence

import mlx.core as mx

from core.cpu.arrays import FLOAT_TYPES, address, floats
from core.cpu.calls import library
from core.cpu.structures import AFFINE, MXFP4, Matrix, Product

_MOST_PRODUCTS = 512  # that one call takes
_FLOAT_BYTES = 4
_Call = tuple[Matrix, int, int | None, int | None, int]  # matrix, expert, addresses of x and of the result, rows of x


def dense_matrix(weight: mx.array) -> Matrix | None:
    """Describes evaluated floats ``[..., rows, columns]``; None where they are not contiguous."""
    at = address(weight)
    if at is None:
        return None
    return Matrix(weight=at, rows=weight.shape[-2], columns=weight.shape[-1], type=FLOAT_TYPES[weight.dtype])


def packed_matrix(weight: mx.array, scales: mx.array, biases: mx.array | None, columns: int) -> Matrix | None:
    """Describes evaluated arrays as ``mx.quantize`` makes them; None where one is not contiguous.

    Args:
        weight: ``[..., rows, words]``.
        scales: ``[..., rows, groups]``; bytes where ``biases`` is None, which means mxfp4.
        columns: numbers of a row.
    """
    places = [address(array) for array in (weight, scales, biases) if array is not None]
    if None in places:
        return None
    return Matrix(
        *places,
        rows=weight.shape[-2],
        columns=columns,
        type=MXFP4 if biases is None else AFFINE,
        bits=weight.shape[-1] * 32 // columns,
        group=columns // scales.shape[-1],
        scale_type=0 if biases is None else FLOAT_TYPES[scales.dtype],
    )


def product(x: mx.array, matrix: Matrix | None, precision: int, dtype: mx.Dtype) -> mx.array | None:
    """``x [..., columns]`` times the transposed matrix, ``[..., rows]`` in ``dtype``.

    Args:
        matrix: of arrays that the caller holds.
        precision: ``EXACT``, ``CLOSE`` or ``ROUNDED``.
    """
    if matrix is None:
        return None
    x, y = floats(x, (*x.shape[:-1], matrix.rows))
    _multiply([(matrix, 0, address(x), address(y), x.size // matrix.columns)], precision)
    return y if dtype == mx.float32 else y.astype(dtype)


def expert_products(
    x: mx.array, indices: mx.array, matrix: Matrix | None, experts: int, precision: int
) -> mx.array | None:
    """``x[...] [rows, columns]`` times the transposed matrix ``indices[...]`` of a stack, in the dtype of ``x``.

    Args:
        x: ``[..., rows, columns]``, its leading axes broadcast against ``indices``.
        indices: uint32 ``[...]``.
        matrix: the stack, of arrays that the caller holds.
        experts: matrices of the stack. An index beyond gives None.
    """
    lead = broadcast(x.shape[:-2], indices.shape)
    if lead is None or matrix is None:
        return None
    chosen = _integers(indices if indices.shape == lead else mx.broadcast_to(indices, lead))
    if max(chosen) >= experts:
        return None
    places = _places(x.shape[:-2], lead)
    dtype, rows = x.dtype, x.shape[-2]
    x, y = floats(x, (*lead, rows, matrix.rows))
    from_, to = address(x), address(y)
    assert from_ is not None
    assert to is not None
    step_x, step_y = (rows * columns * _FLOAT_BYTES for columns in (matrix.columns, matrix.rows))
    calls: list[_Call] = []
    start = 0
    for end in range(1, len(chosen) + 1):
        # Neighbours with the same expert are rows of one product, where their rows of x are neighbours too.
        if end < len(chosen) and chosen[end] == chosen[start] and places[end] == places[start] + end - start:
            continue
        at = from_ + places[start] * step_x, to + start * step_y
        calls.append((matrix, chosen[start], *at, (end - start) * rows))
        start = end
    for first in range(0, len(calls), _MOST_PRODUCTS):
        _multiply(calls[first : first + _MOST_PRODUCTS], precision)
    return y if dtype == mx.float32 else y.astype(dtype)


def _multiply(calls: Sequence[_Call], precision: int) -> None:
    products = (Product * len(calls))()
    for product, (matrix, expert, x, y, rows) in zip(products, calls, strict=True):
        product.matrix = ctypes.addressof(matrix)
        product.expert, product.x, product.y = expert, x, y
        product.m, product.ldx, product.ldy = rows, matrix.columns, matrix.rows
    library().corelm_multiply(products, len(calls), 0, precision)


def _integers(indices: mx.array) -> list[int]:
    """All of them, row after row."""
    view = memoryview(indices)  # type: ignore[arg-type]  # it has the buffer protocol
    if not view.c_contiguous:
        view = memoryview(mx.contiguous(indices))  # type: ignore[arg-type]
    return view.cast("B").cast("I").tolist()


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape to which both broadcast; None where there is none."""
    pairs = list(itertools.zip_longest(reversed(a), reversed(b), fillvalue=1))
    if any(one != other and 1 not in (one, other) for one, other in pairs):
        return None
    return tuple(max(pair) for pair in reversed(pairs))


def _places(shape: tuple[int, ...], full: tuple[int, ...]) -> list[int]:
    """Which element of an array of this shape is at each place of the shape that it is broadcast to."""
    places = [0]
    for size, count in zip((1,) * (len(full) - len(shape)) + shape, full, strict=True):
        places = [place * size + (i if size > 1 else 0) for place in places for i in range(count)]
    return places
