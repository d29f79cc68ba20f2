"""Products through MLX agree with float64, whatever their shapes and strides, with the library that is bound here."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from core import blas
from core.blas.measure import gigaflops, is_right
from core.blas.product import expected, left, right

pytestmark = pytest.mark.skipif(blas.status() is None, reason="MLX does not compute on a CPU of Linux")
_DTYPES = {"float32": (np.float32, 1e-5), "float64": (np.float64, 1e-13), "complex64": (np.complex64, 1e-5)}
_SHAPES = [(1, 1, 1), (1, 7, 1), (5, 7, 3), (64, 65, 66), (1, 1024, 257), (129, 300, 1), (31, 513, 200)]
_VIEWS: dict[str, Callable[[mx.array, mx.array], mx.array]] = {
    "plain": lambda a, b: a @ b,
    "right transposed": lambda a, b: a @ mx.contiguous(b.T).T,
    "left transposed": lambda a, b: mx.contiguous(a.T).T @ b,
    "both transposed": lambda a, b: mx.contiguous(a.T).T @ mx.contiguous(b.T).T,
    "every other column": lambda a, b: mx.repeat(a, 2, axis=1)[:, ::2] @ b,
    "rows of a wider matrix": lambda a, b: mx.concatenate([a, a], axis=1)[:, : a.shape[1]] @ b,
    "batch": lambda a, b: (mx.stack([a, a]) @ mx.stack([b, b]))[1],
    "one for a batch": lambda a, b: (mx.stack([a, a, a]) @ b)[2],
    "added to": lambda a, b: mx.addmm(mx.ones((a.shape[0], b.shape[1]), a.dtype), a, b, 0.5, 2.0) * 2 - 1,
}


def _random(generator: np.random.Generator, shape: tuple[int, int], dtype: type) -> np.ndarray:
    values = generator.standard_normal(shape)
    return (values + 1j * generator.standard_normal(shape) if dtype is np.complex64 else values).astype(dtype)


@pytest.mark.parametrize("view", _VIEWS)
@pytest.mark.parametrize("name", _DTYPES)
def test_products_agree_with_float64(name: str, view: str) -> None:
    dtype, tolerance = _DTYPES[name]
    if view == "added to" and name == "complex64":
        pytest.skip("numbers that are added are scaled in real numbers")
    generator = np.random.default_rng(0)
    for m, k, n in _SHAPES:
        a, b = _random(generator, (m, k), dtype), _random(generator, (k, n), dtype)
        wanted = a.astype(np.complex128) @ b.astype(np.complex128)
        with mx.stream(mx.cpu):
            result = _VIEWS[view](mx.array(a, getattr(mx, name)), mx.array(b, getattr(mx, name)))
            if view == "added to":
                wanted = wanted + 3  # (0.5 × product + 2) × 2 − 1
            mx.eval(result)
        error = np.abs(np.array(result) - wanted).max()
        assert result.dtype == getattr(mx, name)
        assert error <= tolerance * np.sqrt(k) * 4, f"{m} × {k} × {n}: {error}"


def test_the_product_that_proves_a_library() -> None:
    assert (np.array(left()) @ np.array(right())).tolist() == expected()
    assert np.linalg.matrix_rank(np.array(expected())) == 3, "rows and columns in another order are noticed"
    assert is_right()


def test_speed_is_measured_in_billions_a_second() -> None:
    assert 0.01 < gigaflops() < 1e6
