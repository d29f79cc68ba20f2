"""Running the command line: in this process where that will do, in one of its own where streams and signals count."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from core.cli import main

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """Exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def messages(self) -> list[str]:
        """The lines of stderr that begin a message."""
        return [line for line in self.err.splitlines() if not line.startswith(" ")]


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the environment decides what is loaded, printed or kept in a buffer."""
    for name in [name for name in os.environ if name.startswith(("CORE_", "PYTHONIO", "PYTHONUNBUFFERED", "NO_COLOR"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def corelm(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def run(*arguments: str | Path) -> Outcome:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # argparse's own way out
            code = int(exit.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def process() -> Run:
    """Runs a module in a process of its own, in which warnings are errors."""

    def run(*arguments: str | Path, module: str = "core", **options: Any) -> Outcome:
        command = [sys.executable, "-W", "error", "-m", module, *map(str, arguments)]
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False, **options)
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def watched() -> Run:
    """Runs a command whose stderr is a terminal; the outcome's ``err`` is what the terminal was sent."""
    if not hasattr(os, "openpty"):
        pytest.skip("this system has no pseudo-terminals")
    import termios

    def run(*arguments: str | Path, **environment: str) -> Outcome:
        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        with os.fdopen(ours, "rb", buffering=0) as screen:
            child = subprocess.Popen(
                [sys.executable, "-m", "core", *map(str, arguments)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=theirs,
                env={**os.environ, "TERM": "xterm", **environment},
            )
            os.close(theirs)
            shown = b"".join(iter(lambda: _read(screen), b""))
            out, _ = child.communicate(timeout=60)
        return Outcome(child.returncode, out.decode(), shown.decode())

    return run


def _read(screen: BinaryIO) -> bytes:
    """What was sent to a terminal; nothing at the end, which Linux reports as an error."""
    try:
        return screen.read(4096)
    except OSError:
        return b""
