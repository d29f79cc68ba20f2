"""Fingerprints of Python code: equal in every process that runs the same code, and only there."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.kernels.fingerprint import fingerprint

_CODE = """
from core.kernels.fingerprint import fingerprint
def outer(x):
    def inner(y, *, z=1):
        return y in {"some", "of", "these", "words"} or [w for w in x if w > z]
    return inner
print(fingerprint(outer))
"""


def test_it_is_the_same_in_every_process(tmp_path: Path) -> None:
    found = set()
    for seed in ("1", "2", "3"):
        script = tmp_path / f"at_another_place_{seed}.py"
        script.write_text(_CODE)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1


def makes(value: object) -> Callable[..., Any]:
    return eval(f"lambda x: (lambda y: (x, y, {value!r}))")  # a function whose inner one has another constant


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x + 1, lambda x: x - 1),
        (lambda x: x.a, lambda x: x.b),
        (lambda x: x, lambda *x: x),
        (lambda x: x == 1, lambda x: x == True),  # noqa: E712
        (makes(1), makes(2)),
        (functools.partial(max, 1), functools.partial(max, 2)),
    ],
)
def test_other_code_has_another(one: Callable[..., Any], other: Callable[..., Any]) -> None:
    assert fingerprint(one) != fingerprint(other)
