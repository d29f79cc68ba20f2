"""The full comparison of a kernel with its reference, as a report."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from core.kernels.compare import Comparison, compare, dtype_name
from core.kernels.device import current_device
from core.kernels.fused import FusedSource
from core.kernels.kernel import Kernel
from core.kernels.verification import check_key

DTYPES = (mx.float32, mx.float16, mx.bfloat16)


@dataclass(frozen=True)
class KernelCase:
    """One input: what ran, and how far it was from the reference (infinite when it gave no comparable numbers)."""

    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    implementation: Literal["metal", "cuda", "cpu", "reference"]
    ok: bool
    max_absolute_error: float
    max_relative_error: float
    problem: str | None


@dataclass(frozen=True)
class KernelReport:
    """All cases of one kernel on one device; plain fields, so ``dataclasses.asdict`` makes it JSON."""

    name: str
    module: str
    device: str
    status: Literal["ok", "failed", "reference"]
    max_absolute_error: float
    max_relative_error: float
    cases: tuple[KernelCase, ...]


def check_kernel(kernel: Kernel) -> KernelReport:
    """Runs a kernel's samples in float32, float16 and bfloat16, with a random key of its own.

    Where a fused source runs it is compared with the reference on the same input. Where none does, the reference is
    compared with itself in float32, which shows what rounding costs in each dtype. ``status`` is ``ok`` when a source
    ran and every case agreed, ``reference`` when no source ran and every case agreed, else ``failed``. Nothing is
    raised on behalf of a broken source, and no warning is given: the report says it.
    """
    device = current_device()
    fused = None if device is None else FusedSource(kernel, device)
    if fused is not None and fused.source is None:
        fused = None
    samples = [(sample, dtype) for dtype in DTYPES for sample in kernel.sample_inputs(check_key(), dtype)]
    for sample, _ in samples:
        with contextlib.suppress(Exception):  # its case reports it
            if fused is not None and fused.claims(sample):
                fused.begin(sample)
    cases = tuple(_case(kernel, fused, sample, dtype) for sample, dtype in samples)
    if not all(case.ok for case in cases):
        status: Literal["ok", "failed", "reference"] = "failed"
    else:
        status = "ok" if any(case.implementation != "reference" for case in cases) else "reference"
    return KernelReport(
        name=kernel.name,
        module=kernel.origin.module,
        device=str(mx.default_device().type).rpartition(".")[2] if device is None else device.name,
        status=status,
        max_absolute_error=max((case.max_absolute_error for case in cases), default=0.0),
        max_relative_error=max((case.max_relative_error for case in cases), default=0.0),
        cases=cases,
    )


def _case(kernel: Kernel, fused: FusedSource | None, inputs: tuple[mx.array, ...], dtype: mx.Dtype) -> KernelCase:
    implementation: Literal["metal", "cuda", "cpu", "reference"] = "reference"
    try:
        if fused is not None and fused.claims(inputs):
            implementation = fused.device.language
            result = fused.compare(inputs)
        else:
            result = _compare_with_float32(kernel, inputs)
    except Exception as error:  # the report of a broken kernel is what the caller came for
        result = Comparison(False, math.inf, math.inf, f"fails with {type(error).__name__}: {error}")
    return KernelCase(dtype_name(dtype), tuple(x.shape for x in inputs), implementation, *result)


def _compare_with_float32(kernel: Kernel, inputs: tuple[mx.array, ...]) -> Comparison:
    actual = kernel.reference(*inputs)
    wide = [x.astype(mx.float32) if x.dtype in DTYPES else x for x in inputs]
    expected = kernel.reference(*wide).astype(actual.dtype)
    return compare(actual, expected, kernel.tolerance_of(actual.dtype))
