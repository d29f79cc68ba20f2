"""The device that MLX computes on: its name, its memory limits, and wired memory on Metal."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import mlx.core as mx

from core import blas
from core.errors import UsageError

_wired_lock = threading.Lock()
_wired_users = 0
_wired_before = 0
_used = False  # set by this process or, right after a fork, by its parent
_unusable = False


def _forked() -> None:
    global _unusable
    _unusable = _used


os.register_at_fork(after_in_child=_forked)


def check_process() -> None:
    """Checks that this process can compute. Call it before MLX does: a forked process lacks MLX's threads, and would
    hang.

    Raises:
        UsageError: this process was forked from one that has computed, or ``CORE_BLAS`` names no usable library.
    """
    global _used
    if _unusable:
        raise UsageError(
            "this process was forked from one that had used a model, and MLX does not work here",
            hint='Fork before the first model is loaded, or use multiprocessing.get_context("spawn").',
        )
    _used = True
    blas.check()


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns MLX's error about an array of another thread into one that says what to do.

    Raises:
        UsageError: a model that was loaded lazily is first used in another thread.
    """
    try:
        yield
    except RuntimeError as error:
        if "There is no Stream" not in str(error):
            raise
        raise UsageError(
            "something here was made in another thread, and is not computed yet",
            found=str(error),
            hint="Load without lazy=True, or call mx.eval(lm.model) in the thread that loads.",
        ) from None


def backend() -> str:
    """``metal``, ``cuda`` or ``cpu``: what the default device runs on."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def describe() -> str:
    """Backend and device name, for reports."""
    info = mx.device_info()
    return f"{backend()} ({info.get('device_name') or info.get('architecture', 'unknown')})"


def memory_limits() -> tuple[int | None, int | None]:
    """Bytes that a model should use at most, and bytes that the device has; None where unknown."""
    info = mx.device_info()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    match backend():
        case "metal":
            return _integer(info.get("max_recommended_working_set_size")), _integer(info.get("memory_size")) or physical
        case "cuda":
            total = _integer(info.get("total_memory")) or _integer(info.get("memory_size"))
            return total, total
        case _:
            return physical, physical


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


@contextlib.contextmanager
def wired_memory() -> Iterator[None]:
    """Keeps the model's memory resident on Metal while generation runs; does nothing elsewhere.

    Several generations may run at once: the first one sets the limit, the last one restores the earlier limit.

    Raises:
        UsageError: as ``check_process`` and ``explained``.
    """
    global _wired_users, _wired_before
    check_process()
    if backend() != "metal":
        with explained():
            yield
        return
    with _wired_lock:
        _wired_users += 1
        if _wired_users == 1:
            _wired_before = mx.set_wired_limit(memory_limits()[0] or 0)
    try:
        with explained():
            yield
    finally:
        with _wired_lock:
            _wired_users -= 1
            if _wired_users == 0:
                mx.synchronize()
                mx.set_wired_limit(_wired_before)
