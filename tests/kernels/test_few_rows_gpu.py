"""Products of few rows with quantized matrices, on a real device, against float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from core.kernels import check_kernel, reference_only
from core.kernels.few_rows import MOST_ROWS, InParts, few_rows_kernel
from core.nn import Linear, QuantizedLinear

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not mx.cuda.is_available(), reason="no CUDA device")]
EPSILON = 2.0**-8  # half a unit in the last place of bfloat16


def matrix(rows: int, features: int, bits: int, seed: int = 0) -> tuple[mx.array, mx.array, mx.array]:
    weight = mx.random.normal((rows, features), key=mx.random.key(seed)).astype(mx.bfloat16)
    return mx.quantize(weight, 64, bits)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent)


def exact(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, bits: int) -> tuple[np.ndarray, ...]:
    """The product in float64 of weights as the kernel makes them, and the sum of its magnitudes."""
    integers = np.array(weight)[..., None] >> np.arange(0, 32, bits, dtype=np.uint32) & np.uint32(2**bits - 1)
    integers = integers.reshape(weight.shape[0], -1, 64).astype(np.float64)
    scale, bias = (np.array(a.astype(mx.float32)).astype(np.float64)[..., None] for a in (scales, biases))
    affine = integers * scale + bias  # exact
    floats = to_bfloat16(affine if bits == 4 else affine.astype(np.float32)).reshape(weight.shape[0], -1)
    rows = np.array(x.astype(mx.float32), dtype=np.float64)
    return rows @ floats.T, np.abs(rows) @ np.abs(floats).T


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 17, 31, 33, 63, 64])
@pytest.mark.parametrize(
    "sizes", [(256, 256), (512, 4096), (128, 640), (9216, 896), (4096, 14336), (384, 2432)], ids=str
)
def test_value(rows: int, sizes: tuple[int, int], bits: int) -> None:
    packed = matrix(*sizes, bits, seed=rows)
    x = mx.random.normal((1, rows, sizes[1]), key=mx.random.key(rows + 1)).astype(mx.bfloat16)
    kernel = few_rows_kernel(rows, packed[0], bits, 64, "affine")
    assert kernel is not None
    assert kernel.takes(x, *packed)
    expected, magnitude = exact(x[0], *packed, bits)
    error = np.abs(np.array(kernel(x, *packed)[0].astype(mx.float32)) - expected)
    assert (error <= EPSILON * np.abs(expected) + 2e-6 * magnitude).all(), error.max()


@pytest.mark.parametrize("bits", [4, 8])
def test_arrays_that_begin_anywhere(bits: int) -> None:
    weight, scales, biases = matrix(256, 512, bits)
    flat = mx.random.normal((5 * 512 + 1,), key=mx.random.key(4)).astype(mx.bfloat16)
    moved = mx.concatenate([mx.zeros((1,), mx.uint32), weight.flatten()])[1:].reshape(weight.shape)
    for x, packed in ((flat[1:].reshape(5, 512), weight), (flat[:-1].reshape(5, 512), moved)):
        kernel = few_rows_kernel(5, packed, bits, 64, "affine")
        assert kernel is not None
        expected, magnitude = exact(x, packed, scales, biases, bits)
        error = np.abs(np.array(kernel(x, packed, scales, biases).astype(mx.float32)) - expected)
        assert (error <= EPSILON * np.abs(expected) + 2e-6 * magnitude).all()


def test_what_it_does_not_claim_goes_another_way() -> None:
    weight, scales, biases = matrix(256, 512, 4)
    x = mx.random.normal((4, 512))
    kernel = few_rows_kernel(4, weight, 4, 64, "affine")
    assert kernel is not None
    assert not kernel.takes(x, weight, scales, biases)
    assert few_rows_kernel(MOST_ROWS + 1, weight, 4, 64, "affine") is None
    assert few_rows_kernel(4, weight, 4, 32, "affine") is None
    odd = matrix(100, 512, 4)
    kernel = few_rows_kernel(4, odd[0], 4, 64, "affine")
    assert kernel is None or not kernel.takes(x.astype(mx.bfloat16), *odd)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 8, 40])
def test_a_layer_and_its_gradient(bits: int, rows: int) -> None:
    plain = Linear(1024, 512, bias=True)
    plain.set_dtype(mx.bfloat16)
    layer = plain.to_quantized(64, bits)
    assert isinstance(layer, QuantizedLinear)
    x = mx.random.normal((rows, 1024)).astype(mx.bfloat16)

    def loss(x: mx.array) -> mx.array:
        return (layer(x).astype(mx.float32) ** 2).sum()

    value, gradient = layer(x), mx.grad(loss)(x)
    weight = mx.dequantize(layer.weight, layer.scales.astype(mx.float32), layer.biases.astype(mx.float32), 64, bits)
    with reference_only():
        y = x.astype(mx.float32) @ weight.T + layer.bias.astype(mx.float32)
        expected = 2 * y @ weight
    for found, wanted in ((value, y), (gradient, expected)):
        difference = mx.linalg.norm(found.astype(mx.float32) - wanted) / mx.linalg.norm(wanted)
        assert difference.item() < 1e-2


@pytest.mark.parametrize("features", [512, 4096])
@pytest.mark.parametrize("rows", [1, 12, 20, 64])
def test_the_kernel_s_own_check(rows: int, features: int) -> None:
    kernel = few_rows_kernel(rows, matrix(256, features, 4)[0], 4, 64, "affine")
    assert isinstance(kernel, InParts) == (features == 4096)
    assert kernel is not None
    assert check_kernel(kernel.kernel if isinstance(kernel, InParts) else kernel).status == "ok"
