"""Wired memory is set while a generation runs, once, and restored after the last; memory figures are plausible."""

from __future__ import annotations

import mlx.core as mx
import pytest

import core
from core import device


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every limit that was set, on a device that claims to be Metal; 7 is what the user had."""
    calls = [7]

    def set_wired_limit(limit: int) -> int:
        calls.append(limit)
        return calls[-2]

    monkeypatch.setattr(device, "backend", lambda: "metal")
    monkeypatch.setattr(device, "memory_limits", lambda: (1000, 2000))
    monkeypatch.setattr(mx, "set_wired_limit", set_wired_limit)
    return calls


def test_nested_generations_set_it_once(limits: list[int]) -> None:
    with device.wired_memory():
        with device.wired_memory():
            assert limits == [7, 1000]
        assert limits == [7, 1000]
    assert limits == [7, 1000, 7]


def test_an_abandoned_generation_restores_it(limits: list[int]) -> None:
    lm = core.load("demo:mistral", tokenizer=False, check_memory=False)
    tokens = core.generate_tokens(lm.model, [1, 2, 3], max_tokens=8)
    next(tokens)
    assert limits[-1] == 1000
    tokens.close()  # type: ignore[attr-defined]
    assert limits == [7, 1000, 7]


def test_other_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "backend", lambda: "cuda")
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: pytest.fail("only Metal wires memory"))
    with device.wired_memory():
        pass


def test_the_device_says_what_it_is() -> None:
    recommended, available = device.memory_limits()
    assert device.backend() in device.describe()
    assert recommended is not None
    assert available is not None
    assert 2**28 < recommended <= available
