"""The real sources on a real device, against float64."""

from __future__ import annotations

import warnings

import mlx.core as mx
import numpy as np
import pytest
from kernel_shim import DTYPES, to_float64

from core.kernels import KernelWarning, check_kernel, inference, reference_only, swiglu, swiglu_pair
from core.kernels.device import current_device

HAS_GPU = (mx.metal.is_available() or mx.cuda.is_available()) and mx.default_device().type == mx.gpu
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no Metal or CUDA device")]

KERNELS = (swiglu, swiglu_pair)
# Half a unit in the last place for the one rounding, and what float32 inside loses.
ROUNDING = {mx.float32: 6e-6, mx.float16: 2.0**-11 + 6e-6, mx.bfloat16: 2.0**-8 + 6e-6}
SHAPES = [(1, 1, 14336), (1, 1, 11008), (3, 5, 7), (1, 1), (2, 4), (1, 513), (2, 300, 4096), (70_001, 3)]


def random(shape, dtype, seed: int) -> mx.array:
    return (mx.random.normal(shape, key=mx.random.key(seed)) * 20).astype(dtype)


def uses_source(kernel) -> bool:
    device = current_device()
    return device is not None and device in kernel._fused and kernel._fused[device].usable


def check(actual: mx.array, gate: mx.array, up: mx.array) -> None:
    g, u = to_float64(gate), to_float64(up)
    with np.errstate(over="ignore"):
        expected = g / (1 + np.exp(-g)) * u
    smallest = 2.0**-25 if actual.dtype == mx.float16 else 1e-35
    assert (actual.shape, actual.dtype) == (gate.shape, gate.dtype)
    error = np.abs(to_float64(actual) - expected)
    assert (error <= ROUNDING[actual.dtype] * np.abs(expected) + smallest).all(), error.max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value(dtype, shape) -> None:
    gate, up = random(shape, dtype, 1), random(shape, dtype, 2)
    fused = mx.concatenate([gate, up], axis=-1)
    with inference():
        without_gradient = swiglu(fused)
    for result in (swiglu(fused), without_gradient, swiglu_pair(gate, up), mx.compile(swiglu)(fused)):
        check(result, gate, up)
    assert uses_source(swiglu)
    assert uses_source(swiglu_pair)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_that_are_views(dtype) -> None:
    flat = random((8 * 64 + 1,), dtype, 3)
    for start in (0, 1):  # the second starts at an address that no vector load may touch
        view = flat[start : start + 8 * 64].reshape(4, 128)
        check(swiglu(view), view[:, :64], view[:, 64:])
    gate, up = random((64, 32), dtype, 4).T, random((64, 32), dtype, 5).T
    check(swiglu_pair(gate, up), gate, up)
    rows = random((9, 256), dtype, 6)[::2]
    check(swiglu(rows), rows[:, :128], rows[:, 128:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_with_the_source_on(dtype) -> None:
    x, weight = random((5, 96), dtype, 7) / 10, random((5, 48), dtype, 8) / 10

    def loss(x: mx.array) -> mx.array:
        return (swiglu(x) * weight).astype(mx.float32).sum()

    with reference_only():
        expected = mx.grad(loss)(x)
        mx.eval(expected)
    for gradient in (mx.grad(loss), mx.compile(mx.grad(loss)), mx.grad(mx.checkpoint(loss))):
        assert mx.allclose(gradient(x), expected, rtol=4 * ROUNDING[dtype], atol=1e-5).item()
    with pytest.raises(ValueError, match="jvp"):  # MLX cannot push a source forward
        mx.jvp(swiglu, [x], [mx.ones_like(x)])
    with reference_only():
        tangents = [mx.jvp(f, [x], [mx.ones_like(x)])[1][0] for f in (swiglu, swiglu.reference)]
    assert mx.allclose(*tangents, rtol=4 * ROUNDING[dtype], atol=1e-5).item()
    assert uses_source(swiglu)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_report(kernel) -> None:
    report = check_kernel(kernel)
    assert report.status == "ok", [case for case in report.cases if not case.ok]
    assert {case.implementation for case in report.cases} == {current_device().language}


def test_first_use_inside_a_compiled_gradient(make_kernel) -> None:
    kernel = make_kernel(
        "fresh",
        swiglu.reference,
        launch=swiglu.launch,
        sample_inputs=swiglu.sample_inputs,
        metal=swiglu.metal,
        cuda=swiglu.cuda,
    )
    x = random((3, 64), mx.float32, 9)
    value, gradient = mx.compile(mx.value_and_grad(lambda x: kernel(x).sum()))(x)
    with reference_only():
        assert mx.allclose(value, swiglu(x).sum(), rtol=1e-5).item()
        assert mx.allclose(gradient, mx.grad(lambda x: swiglu(x).sum())(x), rtol=1e-5, atol=1e-5).item()
    assert uses_source(kernel)


@pytest.mark.parametrize("change", ["sigmoid * up_i", "this is no source;"], ids=["wrong", "syntax"])
def test_broken_source_falls_back(make_kernel, change: str) -> None:
    metal, cuda = ((source or "").replace("gate_i * sigmoid * up_i", change) for source in (swiglu.metal, swiglu.cuda))
    kernel = make_kernel(
        "broken",
        swiglu.reference,
        launch=swiglu.launch,
        sample_inputs=swiglu.sample_inputs,
        metal=metal,
        cuda=cuda,
    )
    x = random((3, 64), mx.float32, 10)
    with pytest.warns(KernelWarning, match="kernel 'broken'") as caught:
        result = kernel(x)
    assert len(caught) == 1
    check(result, x[:, :32], x[:, 32:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(kernel(x), x[:, :32], x[:, 32:])
    assert not uses_source(kernel)


def test_default_device_moved_to_the_cpu() -> None:
    gate_up = random((2, 16), mx.float32, 11)
    with mx.stream(mx.cpu):
        assert current_device() is None
        check(swiglu(gate_up), gate_up[:, :8], gate_up[:, 8:])


def test_vmap_is_refused_on_a_source_and_works_on_the_reference() -> None:
    x = random((3, 2, 16), mx.float32, 12)
    with pytest.raises(ValueError, match="vmap"):
        mx.vmap(swiglu)(x)
    with reference_only():
        assert mx.allclose(mx.vmap(swiglu)(x), swiglu(x)).item()
