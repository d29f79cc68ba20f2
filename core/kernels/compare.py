"""How far two arrays are apart, and whether that is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, cast

import mlx.core as mx


class Tolerance(NamedTuple):
    """Allowed error of one element: ``absolute + relative * abs(expected)``."""

    absolute: float
    relative: float


# A fused source and its reference may round an intermediate result differently, which costs a few units in the last
# place of the result: 2**-23, 2**-10 and 2**-7 relative. The absolute part covers results near zero, where a GPU
# flushes denormal numbers.
DEFAULT_TOLERANCE: Mapping[mx.Dtype, Tolerance] = {
    mx.float32: Tolerance(1e-6, 1e-5),
    mx.float16: Tolerance(1e-4, 2e-3),
    mx.bfloat16: Tolerance(1e-4, 1.6e-2),
}
EXACT = Tolerance(0.0, 0.0)


class Comparison(NamedTuple):
    """The outcome: the largest errors over all elements (infinite where one side alone is not finite)."""

    ok: bool
    max_absolute_error: float
    max_relative_error: float
    problem: str | None


def compare(actual: mx.array, expected: mx.array, tolerance: Tolerance) -> Comparison:
    """Compares two real arrays element by element; evaluates both.

    Equal infinities agree, and so do two NaNs: a source must reproduce what its reference makes of the input.
    """
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        problem = f"gives {_describe(actual)} where its reference gives {_describe(expected)}"
        return Comparison(False, math.inf, math.inf, problem)
    if actual.size == 0:
        return Comparison(True, 0.0, 0.0, None)
    a, b = actual.astype(mx.float32), expected.astype(mx.float32)
    same = (a == b) | (mx.isnan(a) & mx.isnan(b))
    magnitude = mx.where(mx.isfinite(b), mx.abs(b), 0.0)
    error = mx.where(same, 0.0, mx.abs(a - b))
    error = mx.where(mx.isfinite(error), error, math.inf)
    allowed = mx.all(error <= tolerance.absolute + tolerance.relative * magnitude)
    # Where nothing may be said about relative error (expected 0), the absolute one speaks alone.
    relative = mx.where(magnitude > 0, error / mx.maximum(magnitude, 1e-30), mx.where(mx.isfinite(error), 0.0, error))
    nan = mx.any(mx.isnan(a) & ~mx.isnan(b))
    largest, largest_relative = mx.max(error), mx.max(relative)
    mx.eval(allowed, largest, largest_relative, nan)
    max_absolute, max_relative = cast(float, largest.item()), cast(float, largest_relative.item())
    if allowed.item():
        return Comparison(True, max_absolute, max_relative, None)
    problem = f"differs from its reference by {max_absolute:.3g} (relative {max_relative:.3g})"
    return Comparison(False, max_absolute, max_relative, "gives NaN; " + problem if nan.item() else problem)


def _describe(x: mx.array) -> str:
    return f"{dtype_name(x.dtype)} {list(x.shape)}"


def dtype_name(dtype: mx.Dtype) -> str:
    """``float16`` for ``mx.float16``."""
    return str(dtype).rpartition(".")[2]
