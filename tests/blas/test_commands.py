"""The commands say what multiplies matrices, how fast, and what to install where it is slow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from core import blas
from core.blas import Status, binding
from core.cli import main
from core.cli.doctor import _blas
from core.errors import UsageError

FAST = Status(True, "OpenBLAS 0.3.34 (Haswell)", "/lib/libopenblas.so", 2)
SLOW = binding.own("the package scipy-openblas32 is not installed", "Install it")
OFF = binding.own("the environment variable CORE_BLAS is off")
SetStatus = Callable[[Status | None], None]


@pytest.fixture
def set_status(monkeypatch: pytest.MonkeyPatch) -> SetStatus:
    monkeypatch.setattr(blas, "check", lambda: None)
    monkeypatch.setattr("core.blas.measure.gigaflops", lambda: 123.4)
    return lambda status: monkeypatch.setattr(blas, "status", lambda: status)


def test_doctor_says_what_is_used_and_how_fast(set_status: SetStatus) -> None:
    problems: list[str] = []
    set_status(FAST)
    assert _blas(problems) == "OpenBLAS 0.3.34 (Haswell), 2 threads (123 GFLOP/s in float32)"
    set_status(OFF)
    assert _blas(problems) == (
        "MLX's own, on one thread and slow: the environment variable CORE_BLAS is off (123 GFLOP/s in float32)"
    )
    set_status(None)
    assert _blas(problems) == ""
    assert problems == []


def test_doctor_says_what_to_install(set_status: SetStatus) -> None:
    problems: list[str] = []
    set_status(SLOW)
    _blas(problems)
    assert problems == ["matrix products are slow, because the package scipy-openblas32 is not installed. Install it"]


def test_doctor_goes_on_after_a_bad_setting(set_status: SetStatus, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UsageError("names no library")

    set_status(OFF)
    monkeypatch.setattr(blas, "check", refuse)
    problems: list[str] = []
    assert "123 GFLOP/s" in _blas(problems)
    assert problems == ["names no library"]


def test_inspect_says_it(
    set_status: SetStatus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*options: str) -> str:
        assert main(["inspect", "demo:mistral", *options]) == 0
        return capsys.readouterr().out

    set_status(FAST)
    assert "\n  products by     OpenBLAS 0.3.34 (Haswell), 2 threads\n" in shown()
    assert json.loads(shown("--json"))["blas"] == {
        "used": True,
        "name": "OpenBLAS 0.3.34 (Haswell)",
        "path": "/lib/libopenblas.so",
        "threads": 2,
        "reason": None,
        "hint": None,
    }
    set_status(None)
    assert not re.search("products by", shown())
    assert json.loads(shown("--json"))["blas"] is None


def test_one_thread_is_one_thread() -> None:
    assert str(Status(True, "OpenBLAS", "/x", 1)) == "OpenBLAS, 1 thread"
    assert str(Status(True, "libblis.so", "/x", None)) == "libblis.so"
