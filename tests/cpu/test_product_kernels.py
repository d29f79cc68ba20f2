"""Layers whose products the CPU library computes: derivatives, tracing, threads, and what is left to MLX."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from core.cpu import library, products
from core.cpu.structures import EXACT
from core.kernels import KernelWarning, inference, reference_only, swiglu
from core.kernels import products as product_kernels
from core.kernels.device import current_device
from core.kernels.expert_products import dense_experts
from core.kernels.products import dense_product, packed_product
from core.kernels.weights import DENSE
from core.nn import ExpertLinear
from core.nn.embedding import as_linear
from core.nn.linear import Linear
from tests.cpu.float64 import DTYPES, UNIT, affine64, assert_product, wide

pytestmark = pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="the CPU library is for the CPU")


def large(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return (mx.random.normal(shape) / shape[-1] ** 0.5).astype(dtype)


@pytest.mark.usefixtures("best")
def test_inputs_that_do_not_lie_row_after_row() -> None:
    weight = large(192, 256)
    floats = wide(weight)
    base = mx.random.normal((256, 12))
    for x in (base.T, mx.random.normal((5, 2, 512))[..., ::2], mx.random.normal((9, 256))[::3], mx.ones((256,))):
        assert_product(dense_product(x, weight), x, floats, EXACT)
    column = mx.broadcast_to(mx.random.normal((4, 1)), (4, 256))
    assert_product(dense_product(column, weight), column, floats, EXACT)
    turned = large(256, 192).T
    x = mx.random.normal((3, 256))
    assert_product(dense_product(x, turned), x, wide(turned), EXACT)
    unsorted = mx.array([[0, 1, 2]], dtype=mx.uint32).T
    stack = large(3, 192, 256)
    rows = mx.random.normal((3, 1, 1, 256))
    assert_product(dense_experts(rows, stack, unsorted), rows, wide(stack)[np.array(unsorted)], EXACT)


@pytest.mark.usefixtures("best")
def test_what_is_left_to_mlx() -> None:
    weight = large(256, 256)
    assert dense_product(mx.ones((1, 256)), weight) is not None
    assert dense_product(mx.zeros((0, 256)), weight) is None, "empty"
    assert dense_product(mx.ones((1, 8)), mx.ones((8, 8))) is None, "small"
    assert dense_product(mx.ones((4, 255)), weight) is None, "sizes that do not fit"
    assert dense_product(mx.ones((256, 256), dtype=mx.int32), weight) is None
    packed = mx.quantize(weight, 32, 8, mode="mxfp8")
    assert packed_product(mx.ones((1, 256)), *packed, None) is None, "another format of 8 bits"
    with reference_only():
        assert dense_product(mx.ones((1, 256)), weight) is None
    assert nn.Linear(256, 256)(mx.zeros((0, 256))).shape == (0, 256)
    assert Linear(256, 256)(mx.zeros((0, 256))).shape == (0, 256)


@pytest.mark.usefixtures("best")
def test_dtypes_of_results() -> None:
    for x_dtype in DTYPES:
        for weight_dtype in DTYPES:
            x, weight = mx.ones((2, 256), dtype=x_dtype), large(256, 256, dtype=weight_dtype)
            y = dense_product(x, weight)
            assert y is not None
            assert y.dtype == (x @ weight.T).dtype


LAYERS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "linear": lambda: (Linear(256, 320, bias=True), (3, 256)),
    "bfloat16": lambda: (Linear(256, 320), (3, 256)),
    "affine": lambda: (Linear(256, 320).to_quantized(64, 4), (3, 256)),
    "mxfp4": lambda: (Linear(256, 320).to_quantized(32, 4, "mxfp4"), (9, 256)),
    "experts": lambda: (ExpertLinear(3, 256, 320, bias=True), (4, 1, 256)),
    "affine experts": lambda: (ExpertLinear(3, 256, 320).to_quantized(64, 4), (4, 1, 256)),
    "mxfp4 experts": lambda: (ExpertLinear(3, 256, 320).to_quantized(32, 4, "mxfp4"), (4, 1, 256)),
    "one expert": lambda: (ExpertLinear(3, 256, 320, bias=True), (4, 256)),
}
EXPERTS = mx.array([2, 0, 0, 1], dtype=mx.uint32)


@pytest.fixture(params=list(LAYERS))
def layer(request: pytest.FixtureRequest, best: None, monkeypatch: pytest.MonkeyPatch) -> tuple[object, mx.array]:
    """A function of one array, and an array; the library computes the function, if nothing stands against it."""
    mx.random.seed(11)
    module, shape = LAYERS[request.param]()
    if request.param == "bfloat16":
        module.set_dtype(mx.bfloat16)
    more = (1,) if request.param == "one expert" else (EXPERTS,) if "experts" in request.param else ()
    return (lambda x: module(x, *more)), mx.random.normal(shape)


def close(a: mx.array, b: mx.array, tolerance: float = 2e-3) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(mx.allclose(a, b, rtol=tolerance, atol=tolerance).item())


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each call of the library."""
    calls: list[int] = []
    real = products._multiply
    monkeypatch.setattr(products, "_multiply", lambda some, precision: (calls.append(1), real(some, precision)))
    return calls


def test_layers_agree_with_mlx(layer, monkeypatch: pytest.MonkeyPatch) -> None:
    function, x = layer
    function(x)  # its check
    calls = count_calls(monkeypatch)
    y = function(x)
    assert len(calls) == 1
    with reference_only():
        assert close(y, function(x))
    assert len(calls) == 1
    with inference():
        assert close(y, function(x), 1e-6)
    assert len(calls) == 2


def test_while_mlx_traces_the_reference_is_used_and_the_library_stays(layer, monkeypatch: pytest.MonkeyPatch) -> None:
    function, x = layer
    y = function(x)
    calls = count_calls(monkeypatch)
    compiled = mx.compile(function)
    assert close(compiled(x), y)
    assert close(compiled(x + 1), function(x + 1))
    stacked = mx.stack([x, 2 * x])
    try:
        with reference_only():
            mx.vmap(function)(stacked)
    except (RuntimeError, ValueError) as error:  # MLX batches no gathered and no quantized products
        with pytest.raises(type(error), match="vmap"):
            mx.vmap(function)(stacked)
    else:
        assert close(mx.vmap(function)(stacked)[1], function(2 * x))
    before = len(calls)
    function(x)
    assert len(calls) == before + 1


def test_derivatives(layer) -> None:
    function, x = layer
    direction = mx.random.normal(x.shape)
    weights = mx.random.normal(function(x).shape)

    def loss(x: mx.array) -> mx.array:
        return (weights * mx.sin(function(x))).sum()

    value, gradient = mx.value_and_grad(loss)(x)
    step = 1e-2
    numerical = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert close(value, loss(x))
    assert close((gradient * direction).sum(), numerical, 3e-2)
    assert close(mx.compile(mx.grad(loss))(x), gradient, 1e-2)
    try:
        with reference_only():
            mx.jvp(loss, [x], [direction])
    except (RuntimeError, ValueError) as error:  # MLX pushes no gathered product forward
        with pytest.raises(type(error), match="jvp"):
            mx.jvp(loss, [x], [direction])
    else:
        assert close(mx.jvp(loss, [x], [direction])[1][0], (gradient * direction).sum(), 3e-2)
    curvature = mx.grad(lambda x: (mx.grad(loss)(x) * direction).sum())(x)
    with reference_only():
        assert close(gradient, mx.grad(loss)(x), 1e-2)
        assert close(curvature, mx.grad(lambda x: (mx.grad(loss)(x) * direction).sum())(x), 3e-2)


@pytest.mark.usefixtures("best")
def test_gradients_of_weights() -> None:
    layer, x = Linear(256, 192), mx.random.normal((4, 256))
    gradients = nn.value_and_grad(layer, lambda layer, x: layer(x).square().sum())(layer, x)[1]
    expected = 2 * wide(layer(x)).T @ wide(x)
    assert np.allclose(wide(gradients["weight"]), expected, atol=1e-2)


@pytest.mark.usefixtures("best")
def test_tied_heads() -> None:
    embedding, x = nn.Embedding(300, 256), mx.random.normal((2, 3, 256))
    quantized = embedding.to_quantized(64, 4)
    for one in (embedding, quantized):
        assert close(as_linear(one, x), one.as_linear(x))


@pytest.mark.usefixtures("best")
def test_threads_at_once() -> None:
    weight = large(512, 256)
    floats = wide(weight)
    packed = mx.quantize(large(512, 256), 64, 4)
    mx.eval(weight, *packed)
    faults: list[str] = []

    def work(seed: int) -> None:
        try:
            for rows in (1, 3, 9, 40):
                x = mx.random.normal((rows, 256), key=mx.random.key(seed + rows))
                assert_product(dense_product(x, weight), x, floats, EXACT)
                assert_product(packed_product(x, *packed), x, affine64(*packed, 256), EXACT)
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


@pytest.mark.parametrize(("variable", "value"), [("CORE_CPU", "off"), ("CORE_KERNELS", "reference")])
def test_switched_off(variable: str, value: str) -> None:
    program = (
        "import mlx.core as mx; from core.kernels.products import dense_product; "
        "from core.kernels.device import current_device; from core.nn.linear import Linear; "
        "assert current_device() is None; assert dense_product(mx.ones((9, 256)), mx.ones((256, 256))) is None; "
        "assert Linear(256, 256)(mx.ones((9, 256))).shape == (9, 256)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {variable: value}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.usefixtures("best")
def test_swiglu_of_gates_of_any_size() -> None:
    gates = mx.array([-3e38, -1e4, -100.0, -89.0, -88.0, -1.0, 0.0, 1.0, 88.0, 100.0, 1e4, float("inf")] * 9)
    for dtype in DTYPES:
        x = mx.concatenate([gates, mx.full(gates.shape, 2.0)]).astype(dtype)
        with reference_only():
            expected = swiglu(x)
        assert mx.allclose(swiglu(x), expected, rtol=UNIT[dtype] * 16, atol=1e-30, equal_nan=True).item()


@pytest.mark.usefixtures("best")
def test_a_library_that_computes_nonsense_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = product_kernels._KERNELS[DENSE, EXACT]
    monkeypatch.setattr(kernel, "_fused", {})
    monkeypatch.setattr("core.cpu.products._multiply", lambda some, precision: None)
    x, weight = mx.random.normal((2, 256)), large(256, 256)
    with pytest.warns(KernelWarning, match=r"'dense_product' .* is off on the CPU \("):
        assert dense_product(x, weight) is None


@pytest.mark.usefixtures("best")
def test_the_device_names_its_level() -> None:
    device = current_device()
    assert device is not None
    assert (device.language, device.capability) == ("cpu", 0)
    assert library.library_status().level in device.name
