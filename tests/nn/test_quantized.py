"""Quantized layers: with many rows, made dense, they are what they are with few."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import core
import core.nn.quantized as quantized
from core.nn import Linear, QuantizedLinear
from tests.fixtures import oracle


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA does with many rows, for any number and anywhere."""
    monkeypatch.setattr(quantized, "_densely", lambda rows: True)


def layer(dtype: mx.Dtype, bits: int = 4, mode: str = "affine", group: int = 32, bias: bool = True) -> QuantizedLinear:
    mx.random.seed(3)
    plain = Linear(64, 24, bias=bias)
    plain.set_dtype(dtype)
    made = plain.to_quantized(group, bits, mode=mode)
    assert isinstance(made, QuantizedLinear)
    return made


@pytest.mark.parametrize(
    "settings", [(4, "affine", 32), (8, "affine", 32), (3, "affine", 32), (4, "mxfp4", 32)], ids=str
)
@pytest.mark.parametrize("bias", [False, True])
def test_dense_is_packed(settings: tuple[int, str, int], bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bits, mode, group = settings
    one = layer(mx.float32, bits, mode, group, bias)
    x = mx.random.normal((2, 3, 64))
    packed = one(x)
    monkeypatch.setattr(quantized, "_densely", lambda rows: rows == 6)
    found = one(x)
    assert found.shape == (2, 3, 24)
    np.testing.assert_allclose(np.array(found), np.array(packed), atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_the_result_has_the_dtype_of_the_activations(dtype: mx.Dtype, dense: None) -> None:
    assert layer(mx.float32)(mx.ones((1, 3, 64), dtype)).dtype == dtype
    assert layer(dtype)(mx.ones((1, 3, 64), dtype)).dtype == dtype


def test_gradients_pass_a_dense_product(dense: None) -> None:
    one, x = layer(mx.float32), mx.random.normal((5, 64))
    found = mx.grad(lambda x: (one(x) ** 2).sum())(x)
    weight = np.array(mx.dequantize(one.weight, one.scales, one.biases, one.group_size, one.bits))
    expected = 2 * np.array(one(x)) @ weight
    np.testing.assert_allclose(np.array(found), expected, atol=1e-4, rtol=1e-4)


def test_every_projection_of_a_loaded_model_takes_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = core.load(oracle("mistral_swa8"), tokenizer=False, quantize=core.weights.Quantization(4, 32))
    plain = [m for m in lm.model.modules() if isinstance(m, nn.QuantizedLinear) and not isinstance(m, QuantizedLinear)]
    assert plain == []
    tokens = mx.array([[1, 2, 3, 4]])
    few = lm.model(tokens)
    monkeypatch.setattr(quantized, "_densely", lambda rows: True)
    np.testing.assert_allclose(np.array(lm.model(tokens)), np.array(few), atol=2e-4, rtol=0)
