"""Ctrl-C as a request: noted once, obeyed at once the second time, and nobody's afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from core.cli.interrupt import Interruption
from tests.cli.conftest import ROOT


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_first_noted_then_raised() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        interruption.check()
        assert not interruption.requested
        press()
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        press()


def test_other_threads_have_no_signals() -> None:
    seen: list[bool] = []

    def run() -> None:
        with Interruption() as interruption:
            seen.append(interruption.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_script_is_ended() -> None:
    """Where nobody types, Ctrl-C ends the program, as it does everywhere."""
    command = [sys.executable, "-m", "core", "chat", "-m", "demo:mistral", "-n", "2000", "-t", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"ROMEO:\n")
        child.stdin.flush()
        assert child.stdout.read(20)  # it answers
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert b"Traceback" not in err
