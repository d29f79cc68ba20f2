"""Which kernel language the device at hand speaks, if any."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx

from core.cpu.library import library_status, load_library
from core.errors import UsageError

if TYPE_CHECKING:
    from core.kernels.cuda_code import Compiler

Language = Literal["metal", "cuda", "cpu"]


@dataclass(frozen=True, eq=False)  # compared by identity: it is a dictionary key on the hot path
class KernelDevice:
    """A device that can run fused sources.

    Args:
        name: what a warning calls it.
        language: which of a kernel's sources it takes.
        build: has the signature of ``mx.fast.metal_kernel`` and ``mx.fast.cuda_kernel``; a test passes its own. On the
            CPU the source that it is given is a Python function.
        capability: the major number of a CUDA device's compute capability; 0 where there is none, or nobody says.
        compiler: compiles CUDA sources before MLX has to; None leaves it to MLX.
        ahead: sources are compiled for later, and neither checked nor run.
    """

    name: str
    language: Language
    build: Callable[..., Any]
    capability: int = 0
    compiler: Compiler | None = None
    ahead: bool = False


# A tuple of one, because None is a choice too: the reference.
_override: ContextVar[tuple[KernelDevice | None] | None] = ContextVar("core_kernels_device", default=None)


def current_device() -> KernelDevice | None:
    """The device whose sources a kernel called now would use; None means the reference.

    Raises:
        UsageError: ``CORE_KERNELS`` or ``CORE_CPU`` holds a value that nobody knows.
    """
    override = _override.get()
    if override is not None:
        return override[0]
    # A user may have moved the default to the CPU, even for one block.
    if mx.default_device().type == mx.DeviceType.gpu:
        return _gpu()
    level = None if _mode() == "reference" else library_status().level
    return None if level is None else _cpu(level)


def cpu_sources() -> bool:
    """Whether the CPU library computes what it can: on the CPU, where there is one, and nobody asked for references.

    Raises:
        UsageError: ``CORE_KERNELS`` or ``CORE_CPU`` holds a value that nobody knows.
    """
    if _override.get() is not None or mx.default_device().type != mx.DeviceType.cpu:
        return False
    return _mode() != "reference" and load_library() is not None


@contextmanager
def use_device(device: KernelDevice | None) -> Iterator[None]:
    """Kernels called inside use ``device``, or their references when it is None.

    For tests and measurements; applies to this thread (or task) alone.
    """
    token = _override.set((device,))
    try:
        yield
    finally:
        _override.reset(token)


def reference_only() -> AbstractContextManager[None]:
    """A context manager: kernels called inside use their references, whatever the device.

    What ``mx.compile`` traced before keeps what it traced.
    """
    return use_device(None)


_inference: ContextVar[bool] = ContextVar("core_kernels_inference", default=False)


@contextmanager
def inference() -> Iterator[None]:
    """Kernels called inside carry no gradient, which saves two graph nodes each; for generation, which has none.

    Applies to this thread (or task) alone.
    """
    token = _inference.set(True)
    try:
        yield
    finally:
        _inference.reset(token)


def in_inference() -> bool:
    """Whether ``inference()`` applies here."""
    return _inference.get()


@functools.cache
def _mode() -> str:
    mode = os.environ.get("CORE_KERNELS", "auto")
    if mode not in ("auto", "reference"):
        raise UsageError(
            "the environment variable CORE_KERNELS has an unknown value", expected="auto or reference", found=repr(mode)
        )
    return mode


@functools.cache
def _gpu() -> KernelDevice | None:
    if _mode() == "reference":
        return None
    if mx.metal.is_available():
        return KernelDevice(_gpu_name("Metal GPU"), "metal", mx.fast.metal_kernel)
    if mx.cuda.is_available():
        from core.kernels.cuda_code import device_compiler

        return KernelDevice(_gpu_name("CUDA GPU"), "cuda", mx.fast.cuda_kernel, _capability(), device_compiler())
    return None


@functools.cache
def _cpu(level: str) -> KernelDevice:
    from core.kernels.cpu_source import build

    return KernelDevice(f"the CPU ({level})", "cpu", build)


def _gpu_name(default: str) -> str:
    try:
        return str(mx.device_info(mx.Device(mx.gpu)).get("device_name", default))
    except Exception:  # only a label: an MLX that words this differently must not cost the kernels
        return default


def _capability() -> int:
    return int(mx.device_info(mx.Device(mx.gpu)).get("compute_capability_major", 0))


@functools.cache
def multiprocessors() -> int:
    """Multiprocessors of the first CUDA device; 0 where the driver does not say."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        device, count = ctypes.c_int(), ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
            return 0
        failed = driver.cuDeviceGetAttribute(
            ctypes.byref(count), 16, device
        )  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    except OSError:
        return 0
    return 0 if failed else count.value
