"""Checks whether an array holds NaN or infinity, by two integer maxima over its bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import mlx.core as mx

# Signed and unsigned integers of each float's width, and the bits of infinity in it.
_BITS = {
    mx.float32: (mx.int32, mx.uint32, 0x7F800000),
    mx.float16: (mx.int16, mx.uint16, 0x7C00),
    mx.bfloat16: (mx.int16, mx.uint16, 0x7F80),
}

# Floats of 8 bits, which MLX holds as integers: E4M3 has a sign, and NaN where other formats have infinity; E8M0 has
# one NaN.
_E4M3, _E8M0 = 0x7F, 0xFF
_EIGHT_BITS: Mapping[tuple[str | None, str], int] = {
    ("mxfp4", "scales"): _E8M0,
    ("mxfp8", "scales"): _E8M0,
    ("mxfp8", "weight"): _E4M3,
    ("nvfp4", "scales"): _E4M3,
}
"""Mode of quantization and role of a tensor → the bits of NaN in that tensor."""


def is_float(dtype: mx.Dtype) -> bool:
    """Whether ``has_non_finite`` supports the dtype."""
    return dtype in _BITS


def has_non_finite(array: mx.array) -> mx.array:
    """A boolean scalar, unevaluated.

    Infinity and NaN are the largest bit patterns of their sign. Read as signed integers, the positive ones exceed every
    finite number; read as unsigned integers, the negative ones do. Two integer maxima are exact, cannot overflow, and
    take less than a third of a sum's time on a CPU: 0.2 s for a gigabyte.
    """
    signed, unsigned, infinity = _BITS[array.dtype]
    sign = 1 << (8 * array.dtype.size - 1)
    positive = mx.max(array.view(signed)) >= mx.array(infinity, dtype=signed)
    negative = mx.max(array.view(unsigned)) >= mx.array(sign | infinity, dtype=unsigned)
    return positive | negative


def may_be_non_finite(dtype: mx.Dtype, mode: str | None = None, role: str = "weight") -> bool:
    """Whether an array of this dtype can hold NaN or infinity.

    Args:
        dtype: of the array.
        mode: of quantization, for a tensor of a quantized matrix.
        role: which of the matrix's tensors it is: ``weight``, ``scales`` or ``biases``.
    """
    return is_float(dtype) or (mode, role) in _EIGHT_BITS


def is_non_finite(array: mx.array, mode: str | None = None, role: str = "weight") -> mx.array:
    """A boolean scalar, unevaluated, for an array that ``may_be_non_finite``. The other arguments are the same."""
    if is_float(array.dtype):
        return has_non_finite(array)
    numbers = array.view(mx.uint8)
    if _EIGHT_BITS[mode, role] == _E8M0:
        return mx.max(numbers) == _E8M0
    return (mx.max(numbers.view(mx.int8)) == _E4M3) | (mx.max(numbers) == 0x80 | _E4M3)


def count_non_finite(array: mx.array, mode: str | None = None, role: str = "weight") -> tuple[int, int]:
    """How many numbers are not finite, and how many there are. Arguments as for ``is_non_finite``."""
    if (mode, role) in _EIGHT_BITS and not is_float(array.dtype):
        numbers = array.view(mx.uint8)
        nan = _EIGHT_BITS[mode, role]
        bad = numbers & nan == nan
    else:
        numbers = array.astype(mx.float32)
        bad = ~mx.isfinite(numbers)
    return cast(int, mx.sum(bad).item()), numbers.size


def bytes_are_finite(memory: memoryview, dtype: mx.Dtype) -> bool:
    """Whether all numbers of ``dtype`` in these bytes are finite; computed at once, with NumPy, which must be
    installed.

    For threads: NumPy releases Python's lock, needs no stream of MLX, and reads data in the processor's cache at 20
    GB/s or more.
    """
    import numpy as np  # 0.1 s, and not a dependency of core

    if not len(memory):
        return True
    size = dtype.size
    infinity = _BITS[dtype][2]
    greatest = np.frombuffer(memory, f"i{size}").max(), np.frombuffer(memory, f"u{size}").max()
    return int(greatest[0]) < infinity and int(greatest[1]) < 1 << (8 * size - 1) | infinity
