"""Names of kernels, and the choice of the device."""

from __future__ import annotations

import types

import mlx.core as mx
import pytest

from core.errors import PluginError, UsageError
from core.kernels import device, registered_kernels, swiglu
from core.kernels.device import current_device, reference_only

SOURCE = """
from core.kernels import Kernel, Launch

def make(name):
    return Kernel(name, lambda x: x, launch=None, sample_inputs=None)

kernel = make({name!r})
"""


def run_module(name: str, kernel_name: str = "plugin.norm", source: str = SOURCE) -> types.ModuleType:
    module = types.ModuleType(name)
    exec(compile(source.format(name=kernel_name), f"{name}.py", "exec"), module.__dict__)
    return module


def test_constructing_registers() -> None:
    module = run_module("plugin_a")
    assert registered_kernels()["plugin.norm"] is module.kernel
    assert registered_kernels()["swiglu"] is swiglu
    assert list(registered_kernels()) == sorted(registered_kernels())
    assert repr(module.kernel) == "Kernel('plugin.norm', sources: none, from plugin_a)"
    registered_kernels().clear()
    assert registered_kernels(), "callers get a copy"


def test_two_modules_cannot_share_a_name() -> None:
    first = run_module("plugin_a")
    with pytest.raises(PluginError, match=r"modules plugin_a and plugin_b both define a kernel 'plugin\.norm'"):
        run_module("plugin_b")
    assert registered_kernels()["plugin.norm"] is first.kernel


def test_one_module_cannot_use_a_name_twice() -> None:
    module = run_module("plugin_a")
    with pytest.raises(PluginError, match="modules plugin_a and plugin_a"):
        module.make("plugin.norm")


def test_a_module_imported_anew_replaces_its_kernels() -> None:
    run_module("plugin_a")
    again = run_module("plugin_a")
    assert registered_kernels()["plugin.norm"] is again.kernel


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine of the given make, which reads CORE_KERNELS again."""

    def make(metal: bool = False, cuda: bool = False, default: mx.DeviceType = mx.gpu) -> None:
        monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
        monkeypatch.setattr(mx.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(default))
        device._gpu.cache_clear()
        device._mode.cache_clear()

    monkeypatch.delenv("CORE_KERNELS", raising=False)
    yield make
    device._gpu.cache_clear()
    device._mode.cache_clear()


def test_device_at_hand(machine) -> None:
    machine()
    assert current_device() is None
    for language, build in (("metal", mx.fast.metal_kernel), ("cuda", mx.fast.cuda_kernel)):
        machine(**{language: True})
        found = current_device()
        assert found is not None
        assert (found.language, found.build) == (language, build)
        assert found.name
        assert current_device() is found, "decisions are kept by device"
        with reference_only():
            assert current_device() is None


def test_a_gpu_that_is_not_the_default_device_is_not_used(machine) -> None:
    machine(cuda=True, default=mx.cpu)
    found = current_device()
    assert found is None or found.language == "cpu"


def test_environment(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_KERNELS", "reference")
    machine(cuda=True)
    assert current_device() is None
    monkeypatch.setenv("CORE_KERNELS", "auto")
    machine(cuda=True)
    assert current_device() is not None
    monkeypatch.setenv("CORE_KERNELS", "fast")
    machine(cuda=True)
    with pytest.raises(UsageError, match=r"CORE_KERNELS .*expected auto or reference, found 'fast'"):
        swiglu(mx.zeros((1, 2)))
