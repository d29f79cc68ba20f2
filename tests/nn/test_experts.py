"""Experts: however the rows are brought to them, each token's are applied to it."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import core.nn.experts as module
from core.nn import Experts

COUNT, SIZE, INTER = 4, 32, 64


def experts(quantize: bool) -> Experts:
    mx.random.seed(1)
    made = Experts(COUNT, SIZE, INTER)
    if quantize:
        nn.quantize(made, group_size=32, bits=4)
    return made


def floats(linear: nn.Module) -> np.ndarray:
    if "scales" not in linear:
        return np.array(linear.weight)
    return np.array(mx.dequantize(linear.weight, linear.scales, linear.biases, linear.group_size, linear.bits))


def by_definition(made: Experts, x: mx.array, indices: mx.array) -> np.ndarray:
    """Token by token, expert by expert, in NumPy."""
    gate_up, down = floats(made.gate_up_proj.linears[0]), floats(made.down_proj)
    rows, chosen = np.array(x).reshape(-1, SIZE), np.array(indices).reshape(-1, indices.shape[-1])
    out = np.zeros((*chosen.shape, SIZE))
    for t, row in enumerate(rows):
        for j, e in enumerate(chosen[t]):
            gate, up = np.split(gate_up[e] @ row, 2)
            out[t, j] = down[e] @ (gate / (1 + np.exp(-gate)) * up)
    return out.reshape(*indices.shape, SIZE)


def two_of_four(tokens: int) -> mx.array:
    return mx.argsort(mx.random.normal((tokens, COUNT)), axis=-1)[..., :2].astype(mx.uint32)


@pytest.mark.parametrize("quantize", [False, True], ids=["float", "quantized"])
@pytest.mark.parametrize("tokens", [1, 5, 70, 300])
@pytest.mark.parametrize("apart", [False, True], ids=["gathered", "apart"])
def test_every_way_is_the_definition(tokens: int, quantize: bool, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_apart", lambda rows: apart)
    made = experts(quantize)
    x, indices = mx.random.normal((1, tokens, SIZE)), two_of_four(tokens)[None]
    found = made(x, indices)
    assert found.shape == (1, tokens, 2, SIZE)
    np.testing.assert_allclose(np.array(found), by_definition(made, x, indices), atol=2e-4, rtol=0)


def test_idle_and_busy_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_apart", lambda rows: True)
    made, x = experts(False), mx.random.normal((2, 200, SIZE))
    indices = mx.zeros((2, 200, 1), mx.uint32)
    indices[0, :7] = 3
    np.testing.assert_allclose(np.array(made(x, indices)), by_definition(made, x, indices), atol=2e-4, rtol=0)


def test_experts_apart_have_the_gradients_of_the_gathered_product(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x, indices = experts(False), mx.random.normal((90, SIZE)), two_of_four(90)

    def gradients(apart: bool) -> dict[str, np.ndarray]:
        monkeypatch.setattr(module, "_apart", lambda rows: apart)
        found = nn.value_and_grad(made, lambda x: (made(x, indices) ** 2).sum())(x)[1]
        gate_up, down = found["gate_up_proj"]["linears"][0]["weight"], found["down_proj"]["weight"]
        return {"gate_up": np.array(gate_up), "down": np.array(down)}

    gathered, one_by_one = gradients(False), gradients(True)
    for name in gathered:
        np.testing.assert_allclose(one_by_one[name], gathered[name], atol=1e-3, rtol=1e-4)


def test_a_compiled_call_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shapes cannot depend on numbers."""
    monkeypatch.setattr(module, "_apart", lambda rows: True)
    made, x, indices = experts(False), mx.random.normal((90, SIZE)), two_of_four(90)
    found = mx.compile(lambda x, indices: made(x, indices))(x, indices)
    np.testing.assert_allclose(np.array(found), np.array(made(x, indices)), atol=1e-4, rtol=0)
