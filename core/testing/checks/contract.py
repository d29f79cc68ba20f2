"""Checks of the contract's other promises: hooks run at load time only, kernels agree, steps can be traced, memory."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any
from weakref import WeakKeyDictionary

import mlx.core as mx
import pytest

from core.kernels import Kernel, KernelReport, check_kernel, registered_kernels
from core.kernels.device import current_device
from core.registry import BoundPlugin
from core.registry.contract import HOOKS
from core.testing.base import KitBase
from core.testing.comparing import demand
from core.weights import Plan

_SLACK = 1 << 20  # further bytes that a load may take


class ContractChecks(KitBase):
    """What the contract promises besides numbers."""

    def test_no_hook_is_called_in_the_forward_pass(self) -> None:
        """A failure means that a block calls a hook while it computes. Pass what it needs to its constructor."""
        subject = self.subject
        codes = _hooks_of(subject.bound)
        tokens = subject.tokens(6)
        with _called(codes) as names:
            subject.logits(tokens)
            subject.chunked(tokens, [4, 1, 1])
        demand(not names, f"the forward pass calls the hooks {sorted(names)}")

    def test_forward_can_be_traced(self) -> None:
        """A failure means that ``mx.compile`` cannot trace the forward pass.

        A block probably asks for a number (``.item()``, ``int(…)``, ``if array:``) while it computes. Nothing is
        compiled here: that would take a compiler and seconds.
        """
        subject = self.subject
        tokens = subject.tokens(9)
        try:
            mx.compile(lambda tokens: subject.model(tokens))(tokens)
        except (RuntimeError, ValueError) as error:
            raise AssertionError(f"the forward pass cannot be traced: {error}") from error

    def test_kernels_agree_with_their_references(self) -> None:
        """A failure means that a fused source of this plugin and its reference give different results.

        Only the sources for the present device run. On a CPU without such sources, the references run in every dtype.
        ``python -m core doctor --kernels`` shows each case.
        """
        self.subject.logits(self.subject.tokens(2))  # imports everything that the model uses
        for name, kernel in registered_kernels().items():
            report, kept = _checked(kernel)
            failed = [case for case in report.cases if not case.ok]
            shown = "; ".join(f"{case.dtype} {case.shapes}: {case.problem}" for case in failed[:3])
            demand(report.status != "failed", f"kernel {name!r} ({report.module}) on {report.device}: {shown}")
            demand(kept, f"sample_inputs of kernel {name!r} changes mx.random.state; use the key that it is given")

    def test_load_stays_within_memory(self) -> None:
        """A failure means that a load needs much more memory than the model and one block: a hook computes too early.

        Parameters must stay unevaluated until they are read; do not use ``mx.eval`` or NumPy in ``build_block``.
        """
        if mx.default_device().type != mx.DeviceType.cpu:
            pytest.skip("only the CPU's allocator counts what is asked for, and nothing else")
        subject = self.subject
        path = subject.checkpoint(subject.first_layout)
        gc.collect()
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        lm = subject.load(path, dtype=mx.float32)
        peak = mx.get_peak_memory() - before
        plan = lm.report.plan
        allowed = plan.bytes + 2 * _largest_block(plan) + _SLACK
        demand(peak <= allowed, f"a load of {plan.bytes:,} bytes takes {peak:,}, at most {allowed:,} expected")


_reports: WeakKeyDictionary[Kernel, tuple[object, KernelReport, bool]] = WeakKeyDictionary()
"""Kernel → the device of its check, the report, and whether the random state was unchanged."""


def _checked(kernel: Kernel) -> tuple[KernelReport, bool]:
    """A kernel's report, and whether its check leaves the random state unchanged. Each kernel is checked once for a
    device."""
    device = current_device()
    known = _reports.get(kernel)
    if known is None or known[0] is not device:
        state = _random_state()
        report = check_kernel(kernel)
        known = _reports[kernel] = device, report, _random_state() == state
    return known[1], known[2]


def _random_state() -> list[object]:
    arrays: Any = mx.random.state
    return [array.tolist() for array in arrays]


def _largest_block(plan: Plan) -> int:
    sizes: dict[str, int] = {}
    for entry in plan.entries:
        block = ".".join(entry.parameter.split(".")[:2])
        sizes[block] = sizes.get(block, 0) + entry.nbytes
    return max(sizes.values())


def _hooks_of(bound: BoundPlugin) -> dict[CodeType, str]:
    """The code of every hook of a plugin, and of the plugins it delegates to → the hook's name."""
    found: dict[CodeType, str] = {}
    for name in HOOKS:
        for implementation in getattr(bound.manager.hook, name).get_hookimpls():
            code = getattr(implementation.function, "__code__", None)
            if code is not None:
                found[code] = name
    for other in bound.delegates.values():
        found |= _hooks_of(other)
    return found


@contextmanager
def _called(codes: dict[CodeType, str]) -> Iterator[set[str]]:
    """The names of those functions that are called inside this block, directly or not."""
    names: set[str] = set()

    def watch(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code in codes:
            names.add(codes[frame.f_code])

    before: Callable[..., object] | None = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield names
    finally:
        sys.setprofile(before)
