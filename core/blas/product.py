"""One small product of matrices, by which a library proves itself before MLX is given its functions.

The numbers are small integers, so that any right way to compute them gives exactly the same.
"""

from __future__ import annotations

import ctypes
from typing import Any

_ROWS, _INNER, _COLUMNS = 5, 7, 3
_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112
FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
"""The products that MLX takes from a library: float32, float64 and complex64."""


def left() -> list[list[int]]:
    """A matrix of 5 rows and 7 columns."""
    return [[(3 * i + 5 * k) % 11 - 5 for k in range(_INNER)] for i in range(_ROWS)]


def right() -> list[list[int]]:
    """A matrix of 7 rows and 3 columns."""
    return [[(7 * k + 2 * j) % 13 - 6 for j in range(_COLUMNS)] for k in range(_INNER)]


def expected() -> list[list[int]]:
    """The product of ``left()`` and ``right()``."""
    columns = list(zip(*right(), strict=True))
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in left()]


def multiplies(name: str, function: Any) -> bool:
    """Whether a function with the C interface of ``name``, one of ``FUNCTIONS``, computes the product, and with its
    right side transposed.
    """
    kind = ctypes.c_double if name == "cblas_dgemm" else ctypes.c_float
    parts = 2 if name == "cblas_cgemm" else 1  # complex numbers are pairs, whose second part is 0 here
    one, nothing = _numbers(kind, [1], parts), _numbers(kind, [0], parts)
    function.restype = None
    scalar: Any = ctypes.c_void_p if parts == 2 else kind
    number, pointer = ctypes.c_int, ctypes.c_void_p
    function.argtypes = (
        *(number,) * 6,
        scalar,
        *(pointer, number) * 2,
        scalar,
        *(pointer, number),
    )
    a = _numbers(kind, [x for row in left() for x in row], parts)
    wanted = [x for row in expected() for x in row]
    for transposed in (False, True):
        rows = zip(*right(), strict=True) if transposed else right()
        b = _numbers(kind, [x for row in rows for x in row], parts)
        c = _numbers(kind, [99] * len(wanted), parts)
        function(
            _ROW_MAJOR,
            _PLAIN,
            _TRANSPOSED if transposed else _PLAIN,
            _ROWS,
            _COLUMNS,
            _INNER,
            one if parts == 2 else one[0],
            a,
            _INNER,
            b,
            _INNER if transposed else _COLUMNS,
            nothing if parts == 2 else nothing[0],
            c,
            _COLUMNS,
        )
        if list(c) != list(_numbers(kind, wanted, parts)):
            return False
    return True


def _numbers(kind: Any, values: list[int], parts: int) -> Any:
    flat = [x for value in values for x in (value, *[0] * (parts - 1))]
    return (kind * len(flat))(*flat)
