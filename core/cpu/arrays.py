"""Where an MLX array lies in memory. MLX's CPU backend computes in ordinary memory, so C code can read and write it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import mlx.core as mx

FLOAT_TYPES = {mx.float32: 0, mx.bfloat16: 1, mx.float16: 2}
"""What the C structures call the dtypes of floats."""


def address(array: mx.array) -> int | None:
    """The address of an array's first element; None where it is not row-major and contiguous.

    Evaluates the array. The address holds as long as somebody holds the array.
    """
    view = memoryview(array)  # type: ignore[arg-type]  # it has the buffer protocol
    if not view.c_contiguous:
        return None
    return ctypes.addressof(_BYTE.from_buffer(view))


def known_address(array: mx.array) -> int:
    """The address of an array that is row-major and contiguous."""
    found = address(array)
    assert found is not None
    return found


def addresses(arrays: Sequence[mx.array]) -> list[int]:
    """The addresses of arrays' first elements, however they lie; a fast way for many. Evaluates the arrays."""
    return list(map(ctypes.addressof, map(_BYTE.from_buffer, arrays)))  # type: ignore[arg-type]


def evaluated(*arrays: mx.array) -> bool:
    """Evaluates arrays; False where MLX only traces them, as ``mx.compile`` and ``mx.vmap`` do: they have no memory.

    Raises:
        RuntimeError, ValueError: what MLX says of anything else that fails.
    """
    try:
        mx.eval(*arrays)
    except ValueError as error:
        if "during function transformations" not in str(error):
            raise
        return False
    return True


def floats(x: mx.array, shape: tuple[int, ...]) -> tuple[mx.array, mx.array]:
    """``x`` as contiguous float32, and zeros of a shape, for a result; both evaluated."""
    y = mx.zeros(shape)
    wide = x.astype(mx.float32)
    mx.eval(wide, y)
    if address(wide) is None:
        wide = mx.contiguous(wide)
        mx.eval(wide)
    return wide, y


_BYTE = ctypes.c_char
