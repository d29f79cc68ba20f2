"""Exit codes, messages and streams, whatever the command."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import core
from core.cli import program
from core.errors import CheckpointError, UsageError
from tests.cli.conftest import ROOT, Run
from tests.fixtures import STORIES


class Fake:
    """A command that does what a test says."""

    SUMMARY = "a command for tests"

    def __init__(self, action: Callable[[], int]) -> None:
        self.action = action

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """It has none."""

    def run(self, args: argparse.Namespace) -> int:
        return self.action()


@pytest.fixture
def fake(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs an action as the command ``fake``."""

    def run(action: Callable[[], int], *arguments: str) -> object:
        monkeypatch.setitem(program.COMMANDS, "fake", Fake(action))
        return corelm("fake", *arguments)

    return run  # type: ignore[return-value]


def raises(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        print("said before")
        raise error

    return action


def test_version(corelm: Run) -> None:
    assert corelm("--version").out == f"corelm {core.__version__}\n"


def test_help_names_every_command_and_computes_nothing() -> None:
    code = "import sys; from core.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    text, modules = done.stdout.rsplit("\n", 2)[0], set(done.stdout.split("\n")[-2].split())
    assert all(f"\n    {name} " in text for name in program.COMMANDS)
    assert "core.cli.doctor" in modules
    assert modules.isdisjoint({"mlx", "mlx.core", "rich", "jinja2", "tokenizers", "huggingface_hub", "pydantic"})


def test_without_a_command_the_commands_are_listed(corelm: Run) -> None:
    outcome = corelm()
    assert (outcome.code, outcome.out) == (2, "")
    assert all(f"\n    {name} " in outcome.err for name in program.COMMANDS)


@pytest.mark.parametrize("arguments", [("nonsense",), ("generate",), ("inspect", "--bogus", "x")])
def test_what_makes_no_sense_is_2(corelm: Run, arguments: tuple[str, ...]) -> None:
    outcome = corelm(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert "error: " in outcome.err


@pytest.mark.parametrize(("error", "code"), [(CheckpointError, 1), (UsageError, 2)])
def test_an_error_is_one_message(fake: Run, error: type[CheckpointError], code: int) -> None:
    outcome = fake(raises(error("is broken", where="a/b", hint="repair it")))
    assert (outcome.code, outcome.out) == (code, "said before\n")
    assert outcome.err == "error: a/b: is broken\n  repair it\n"


def test_debug_adds_the_traceback_without_control_characters(fake: Run) -> None:
    outcome = fake(raises(CheckpointError("is \x1b[31mbroken")), "--debug")
    assert outcome.code == 1
    assert outcome.err.startswith("Traceback")
    assert outcome.err.endswith("error: is \\x1b[31mbroken\n")
    assert "\x1b" not in outcome.err


def test_a_fault_of_our_own_is_told_in_two_lines(fake: Run) -> None:
    outcome = fake(raises(KeyError("x")))
    assert outcome.code == 1
    assert outcome.messages == ["error: KeyError: 'x'"]
    assert "--debug" in outcome.err


def test_interrupted_is_130_and_silent(fake: Run) -> None:
    outcome = fake(raises(KeyboardInterrupt()))
    assert (outcome.code, outcome.out, outcome.err) == (130, "said before\n", "")


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(fake: Run) -> None:
    def action() -> int:
        warnings.warn("mind\n  the \x1b[1mgap", stacklevel=1)
        return 0

    outcome = fake(action)
    assert (outcome.code, outcome.err) == (0, "warning: mind the \\x1b[1mgap\n")


def test_the_reader_of_a_pipe_may_leave() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-W", "error", "-m", "core", "inspect", str(STORIES)]
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error() -> None:
    command = [sys.executable, "-W", "error", "-m", "core", "inspect", str(STORIES)]
    with Path("/dev/full").open("wb") as out:
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


def test_interrupting_a_generation() -> None:
    command = [sys.executable, "-m", "core", "generate", "Once", "--model", str(STORIES), "-n", "1000000"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert child.stdout is not None
    first = child.stdout.read(1)  # text comes before the end, which is far away
    child.send_signal(signal.SIGINT)
    rest, err = child.communicate(timeout=60)
    assert first
    assert len(rest) < io.DEFAULT_BUFFER_SIZE - 1  # and each piece at once, not when a buffer is full
    assert (child.returncode, err) == (130, b"")


def test_module_inspect_is_the_command_inspect(process: Run, corelm: Run) -> None:
    as_module = process(STORIES, module="core.inspect")
    assert as_module == process("inspect", STORIES)
    assert (as_module.code, as_module.err) == (0, "")
    assert as_module.out == corelm("inspect", STORIES).out


def test_an_encoding_without_the_character_is_no_error(process: Run, tmp_path: Path) -> None:
    shutil.copytree(STORIES, tmp_path / "modèle")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    outcome = process("inspect", tmp_path / "modèle", env=environment)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"{tmp_path}/mod\\xe8le\n")
