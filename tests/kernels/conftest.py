"""Kernels on devices that do not exist: a fake device runs a Python function where a real one runs a source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from core.kernels import Kernel, Launch, registry
from core.kernels.device import KernelDevice


class FakeGPU(KernelDevice):
    """Counts what is built and launched; ``compute`` takes what a source takes and gives its output."""

    def __init__(self, compute: Callable[..., mx.array], build_error: Exception | None = None) -> None:
        self.builds: list[dict[str, Any]] = []
        self.launches: list[dict[str, Any]] = []

        def build(**description: Any) -> Callable[..., list[mx.array]]:
            self.builds.append(description)
            if build_error is not None:
                raise build_error

            def launch(*, inputs: list[mx.array], **arguments: Any) -> list[mx.array]:
                self.launches.append(arguments)
                return [compute(*inputs)]

            return launch

        super().__init__("Fake GPU 9000", "metal", build)


def twice_plus_sine(x: mx.array) -> mx.array:
    return 2 * x + mx.sin(x)


def sample_launch(x: mx.array) -> Launch:
    """Even sizes have a template of their own."""
    return Launch((x.size, 1, 1), (32, 1, 1), x.shape, x.dtype, (("T", x.dtype), ("EVEN", x.size % 2 == 0)))


def sample_inputs(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
    return [(mx.random.normal(shape, key=key).astype(dtype),) for shape in ((4, 8), (3, 5), (2,), (1,))]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_kernels", dict(registry._kernels))


@pytest.fixture
def make_kernel() -> Callable[..., Kernel]:
    def make(name: str = "sample", reference: Callable[..., mx.array] = twice_plus_sine, **changes: Any) -> Kernel:
        arguments: dict[str, Any] = {"launch": sample_launch, "sample_inputs": sample_inputs, "metal": "the body"}
        return Kernel(name, reference, **(arguments | changes))

    return make
