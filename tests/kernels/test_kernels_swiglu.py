"""SwiGLU's references against float64, on whatever device runs the tests."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from kernel_shim import DTYPES, to_float64

from core.kernels import inference, reference_only, swiglu, swiglu_pair

# Half a unit in the last place for the one rounding, and what float32 inside loses.
ROUNDING = {mx.float32: 6e-6, mx.float16: 2.0**-11 + 6e-6, mx.bfloat16: 2.0**-8 + 6e-6}
SMALLEST = {mx.float32: 1e-37, mx.float16: 2.0**-25, mx.bfloat16: 1e-37}


def silu_product(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 3, 5), (7,), (1,), (4, 1, 1, 129)], ids=str)
def test_value(dtype, shape) -> None:
    gate, up = ((mx.random.normal(shape, key=mx.random.key(k)) * 20).astype(dtype) for k in (1, 2))
    expected = silu_product(to_float64(gate), to_float64(up))
    with inference():
        without_gradient = swiglu(mx.concatenate([gate, up], axis=-1))
    for result in (
        without_gradient,
        swiglu(mx.concatenate([gate, up], axis=-1)),
        swiglu_pair(gate, up),
        mx.compile(swiglu_pair)(gate, up),
    ):
        assert (result.shape, result.dtype) == (shape, dtype)
        assert (np.abs(to_float64(result) - expected) <= ROUNDING[dtype] * np.abs(expected) + SMALLEST[dtype]).all()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_rounds_once_and_survives_what_half_cannot_hold(dtype) -> None:
    # exp(60) overflows in float16; gate * up does too, and only the result's own range may decide.
    gate = mx.array([-60.0, 60.0, -20.0, 1000.0, 11.0], dtype=dtype)
    up = mx.array([1000.0, 1000.0, 1000.0, 1000.0, 0.001], dtype=dtype)
    expected = silu_product(to_float64(gate), to_float64(up))
    result = to_float64(swiglu_pair(gate, up))
    if dtype == mx.float16:
        assert np.isinf(result[3])
        expected[3] = np.inf
    np.testing.assert_allclose(result, expected, rtol=ROUNDING[dtype], atol=SMALLEST[dtype])


def test_gate_comes_first() -> None:
    assert swiglu(mx.array([0.0, 0.0, 5.0, 6.0])).tolist() == [0.0, 0.0]
    assert swiglu(mx.array([100.0, 100.0, 5.0, 6.0])).tolist() == [500.0, 600.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient(dtype) -> None:
    gate, up, weight = (mx.random.normal((3, 7), key=mx.random.key(k)).astype(dtype) for k in (3, 4, 5))
    gradient = mx.grad(lambda x: (swiglu(x) * weight).astype(mx.float32).sum())(mx.concatenate([gate, up], axis=-1))
    pair = mx.grad(lambda g, u: (swiglu_pair(g, u) * weight).astype(mx.float32).sum(), (0, 1))(gate, up)
    g, u, w = map(to_float64, (gate, up, weight))
    s = 1 / (1 + np.exp(-g))
    expected = np.concatenate([w * u * s * (1 + g * (1 - s)), w * g * s], axis=-1)
    assert gradient.dtype == dtype
    for actual in (gradient, mx.concatenate(pair, axis=-1)):
        np.testing.assert_allclose(to_float64(actual), expected, rtol=2 * ROUNDING[dtype], atol=1e-6)


def test_vmap() -> None:
    x = mx.random.normal((3, 4, 10), key=mx.random.key(0))
    with reference_only():
        assert mx.array_equal(mx.vmap(swiglu, in_axes=1, out_axes=1)(x), swiglu(x)).item()


def test_nothing_to_do() -> None:
    assert swiglu(mx.zeros((0, 8))).shape == (0, 4)
    assert swiglu_pair(mx.zeros((2, 0)), mx.zeros((2, 0))).shape == (2, 0)


def test_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="split"):
        swiglu(mx.zeros((2, 7)))


def test_sources_claim_what_they_can_do() -> None:
    assert swiglu.supports(mx.zeros((2, 6), dtype=mx.bfloat16))
    assert not swiglu.supports(mx.zeros((2, 5)))
    assert not swiglu.supports(mx.array(1.0))
    assert not swiglu.supports(mx.zeros((2, 6), dtype=mx.int32))
    assert not swiglu.supports(mx.broadcast_to(mx.zeros((1,)), (2**16, 2**15))), "indices have 32 bits"
    assert swiglu_pair.supports(mx.zeros((2, 5)), mx.zeros((2, 5)))
    assert not swiglu_pair.supports(mx.zeros((2, 5)), mx.zeros((5,)))
    assert not swiglu_pair.supports(mx.zeros((2, 5)), mx.zeros((2, 5), dtype=mx.float16))


@pytest.mark.parametrize("kernel", [swiglu, swiglu_pair], ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launch_covers_every_element_once(kernel, dtype) -> None:
    for sample in kernel.sample_inputs(mx.random.key(0), dtype):
        launch = kernel.launch(*sample)
        expected = kernel.reference(*sample)
        width = dict(launch.template)["WIDTH"]
        assert launch.grid == (expected.size // width, 1, 1)
        assert expected.size % width == 0
        assert (launch.output_shape, launch.output_dtype) == (expected.shape, expected.dtype)
        assert 0 < launch.threadgroup[0] <= 1024
