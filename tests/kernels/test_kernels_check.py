"""Comparison of arrays, and the report that a person reads."""

from __future__ import annotations

import dataclasses
import json
import math

import mlx.core as mx
import pytest
from conftest import FakeGPU, twice_plus_sine

from core.kernels import Tolerance, check_kernel, swiglu, swiglu_pair
from core.kernels.compare import DEFAULT_TOLERANCE, EXACT, compare
from core.kernels.device import use_device

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("actual", "expected", "ok", "absolute", "relative"),
    [
        ([1.0, 2.0], [1.0, 2.0], True, 0.0, 0.0),
        ([1.0, 2.5], [1.0, 2.0], False, 0.5, 0.25),
        ([1.0, 2.0625], [1.0, 2.0], True, 0.0625, 0.03125),
        ([0.0625], [0.0], True, 0.0625, 0.0),
        ([0.5], [0.0], False, 0.5, 0.0),
        ([INF, -INF, NAN], [INF, -INF, NAN], True, 0.0, 0.0),
        ([INF], [-INF], False, INF, INF),
        ([1e30], [INF], False, INF, INF),
        ([INF], [1e30], False, INF, INF),
        ([NAN], [1.0], False, INF, INF),
        ([1.0], [NAN], False, INF, INF),
    ],
)
def test_compare(actual, expected, ok: bool, absolute: float, relative: float) -> None:
    result = compare(mx.array(actual), mx.array(expected), Tolerance(0.0625, 0.0078125))
    assert result[:3] == (ok, absolute, relative)
    assert (result.problem is None) == ok
    assert ("NaN" in (result.problem or "")) == (actual == [NAN] and expected != [NAN])


def test_compare_shapes_dtypes_and_nothing() -> None:
    assert not compare(mx.zeros((2, 1)), mx.zeros((2,)), EXACT).ok
    assert not compare(mx.zeros((2,), dtype=mx.float16), mx.zeros((2,)), EXACT).ok
    assert compare(mx.zeros((0, 2)), mx.zeros((0, 2)), EXACT).ok
    assert compare(mx.array([3, 4]), mx.array([3, 4]), EXACT).ok
    assert not compare(mx.array([3, 5]), mx.array([3, 4]), EXACT).ok


@pytest.mark.parametrize("dtype", DEFAULT_TOLERANCE, ids=str)
def test_default_tolerance_allows_one_unit_in_the_last_place_and_not_many(dtype) -> None:
    bits = mx.array([1.0, 1.5, 100.0]).astype(dtype)
    unsigned = mx.uint32 if dtype == mx.float32 else mx.uint16
    step = {mx.float32: 16, mx.float16: 1, mx.bfloat16: 1}[dtype]
    near = (bits.view(unsigned) + step).astype(unsigned).view(dtype)
    far = (bits.view(unsigned) + 16 * step).astype(unsigned).view(dtype)
    assert compare(near, bits, DEFAULT_TOLERANCE[dtype]).ok
    assert not compare(far, bits, DEFAULT_TOLERANCE[dtype]).ok


@pytest.mark.parametrize("kernel", [swiglu, swiglu_pair], ids=lambda k: k.name)
def test_report_of_a_reference(kernel) -> None:
    with use_device(None):
        report = check_kernel(kernel)
    assert (report.name, report.module, report.status) == (kernel.name, "core.kernels.swiglu", "reference")
    assert {case.dtype for case in report.cases} == {"float32", "float16", "bfloat16"}
    assert {case.implementation for case in report.cases} == {"reference"}
    assert len({case.shapes for case in report.cases}) >= 8
    assert report.max_absolute_error == 0.0
    assert json.loads(json.dumps(dataclasses.asdict(report)))["cases"][0]["ok"] is True


def test_report_of_a_source(make_kernel) -> None:
    kernel = make_kernel(supports=lambda x: x.dtype != mx.float16)
    with use_device(FakeGPU(lambda x: twice_plus_sine(x) + mx.array(1e-7, dtype=x.dtype))):
        report = check_kernel(kernel)
    assert (report.status, report.device) == ("ok", "Fake GPU 9000")
    errors = {case.max_absolute_error for case in report.cases if case.dtype == "float32"}
    assert 0 < max(errors) < 1e-6
    assert report.max_absolute_error >= max(errors)
    ran = {case.dtype: case.implementation for case in report.cases}
    assert ran == {"float32": "metal", "float16": "reference", "bfloat16": "metal"}


def test_report_of_a_source_that_is_wrong_in_one_dtype(make_kernel) -> None:
    kernel = make_kernel()
    gpu = FakeGPU(lambda x: x * NAN if x.dtype == mx.bfloat16 else twice_plus_sine(x))
    with use_device(gpu):
        report = check_kernel(kernel)
        assert report.status == "failed"
        assert {case.dtype for case in report.cases if not case.ok} == {"bfloat16"}
        assert math.isinf(report.max_absolute_error)
        # A report decides nothing: the first use makes up its own mind.
        assert mx.array_equal(kernel(mx.ones(3)), twice_plus_sine(mx.ones(3))).item()
        assert kernel._fused[gpu].usable


def test_report_of_a_source_that_does_not_compile(make_kernel) -> None:
    with use_device(FakeGPU(twice_plus_sine, build_error=ValueError("expected ';'"))):
        report = check_kernel(make_kernel())
    assert report.status == "failed"
    assert {case.problem for case in report.cases} == {"fails with ValueError: expected ';'"}
    assert {case.implementation for case in report.cases} == {"metal"}


def test_report_of_a_reference_that_overflows_in_half(make_kernel) -> None:
    with use_device(None):
        report = check_kernel(make_kernel(reference=lambda x: mx.exp(x * 4 + 8) * mx.exp(-x * 4 - 8)))
    assert report.status == "failed"
    assert {case.dtype for case in report.cases if not case.ok} >= {"float16"}


def test_report_leaves_the_random_state_alone() -> None:
    mx.random.seed(3)
    expected = mx.random.uniform(shape=(2,)).tolist()
    mx.random.seed(3)
    check_kernel(swiglu)
    assert mx.random.uniform(shape=(2,)).tolist() == expected
