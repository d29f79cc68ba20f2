"""``corelm chat`` on a terminal: a real one, with a keyboard that sends Ctrl-C, Ctrl-D and pastes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import core
from core.chat import PLAIN_TEMPLATE
from core.cli.repl import Repl
from core.cli.screen import PlainScreen
from core.generation import GenerationChunk
from core.language_model import LanguageModel
from tests.cli.conftest import ROOT

termios = pytest.importorskip("termios")

PROMPT = "> "
# Makes stdin the terminal of the new session, so that its Ctrl-C is a signal, and goes on as Python.
_TAKES_IT = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A process whose terminal this is; its stdout may go elsewhere."""

    def __init__(self, *arguments: str, stdout: int | None = None) -> None:
        self._ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        self._child = subprocess.Popen(
            [sys.executable, "-c", _TAKES_IT, "-W", "error", "-m", "core", *arguments],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "NO_COLOR": "1", "INPUTRC": os.devnull},
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""
        self._read = 0

    def send(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, text: str, seconds: float = 60) -> str:
        """What appears from here up to ``text``."""
        end = time.monotonic() + seconds
        while text not in self.shown[self._read :]:
            if not self._more(end):
                raise AssertionError(f"{text!r} did not appear after {self.shown[self._read :]!r}")
        place = self.shown.index(text, self._read) + len(text)
        found, self._read = self.shown[self._read : place], place
        return found

    def interrupt_until(self, text: str) -> None:
        """Presses Ctrl-C at a prompt; again if Python's readline has just missed it, on its way to wait for a key."""
        for _ in range(5):
            self.send("\x03")
            with contextlib.suppress(AssertionError):
                self.until(text, seconds=5)
                return
        raise AssertionError(f"{text!r} did not appear")

    def code(self) -> int:
        """The exit code, when everything was read."""
        end = time.monotonic() + 60
        while self._more(end):
            pass
        return self._child.wait(timeout=max(1.0, end - time.monotonic()))

    def _more(self, end: float) -> bool:
        """Reads what is there; False at the end, or when time is up."""
        ready, _, _ = select.select([self._ours], [], [], max(0.0, end - time.monotonic()))
        data = b""
        if ready:
            with contextlib.suppress(OSError):  # how Linux reports the end
                data = os.read(self._ours, 65536)
        self.shown += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        os.close(self._ours)
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()


Open = Callable[..., Terminal]


@pytest.fixture
def terminal() -> Iterator[Open]:
    """Opens ``corelm chat`` with the demo model and waits for its prompt."""
    opened: list[Terminal] = []

    def run(*options: str, stdout: int | None = None) -> Terminal:
        one = Terminal("chat", "-m", "demo:mistral", "-t", "0", *options, stdout=stdout)
        opened.append(one)
        one.until(PROMPT)
        return one

    yield run
    for one in opened:
        one.close()


def test_interrupting_answers_lines_and_ending(terminal: Open, tmp_path: Path) -> None:
    """Ctrl-C stops an answer, of which what was said stays; it drops a line; Ctrl-D ends."""
    chat = terminal("-n", "2000", "--plain")
    chat.send("ROMEO:\r")
    chat.until("ROMEO:\r\n")
    chat.until("\n")  # the answer has begun
    chat.until("\n")
    chat.send("\x03")
    chat.until("(stopped; what was said is kept)")
    chat.until(PROMPT)
    chat.send("half a line")
    chat.until("half a line")
    chat.interrupt_until("(Ctrl-D or /exit ends)")
    chat.until(PROMPT)
    file = tmp_path / "chat.json"
    chat.send(f"/save {file}\r")
    chat.until(PROMPT)
    chat.send("/nope\r")  # an error ends nothing
    chat.until("error: there is no command /nope")
    chat.until(PROMPT)
    chat.send("\x04")
    assert chat.code() == 0
    question, answer = json.loads(file.read_text())["messages"]
    assert question == {"role": "user", "content": "ROMEO:"}
    assert answer["interrupted"] is True
    shown = chat.shown.replace("\r\n", "\n").replace("^C", "")
    assert answer["content"] in shown


def test_editing_history_and_a_paste(terminal: Open, tmp_path: Path) -> None:
    """The arrow key brings the last line back; a paste between its marks is one message, whatever it begins with."""
    readline = pytest.importorskip("readline")
    if "libedit" in (readline.__doc__ or ""):
        pytest.skip("libedit knows no bracketed paste")
    chat = terminal("-n", "3")
    assert "\x1b[?2004h" in chat.shown  # a terminal that hears this marks what is pasted
    chat.send("\x1b[200~one\rtwo\x1b[201~\r")
    chat.until("(ended by length after 3 tokens)")
    chat.until(PROMPT)
    chat.send('\x1b[200~"""Doc.\rimport os\x1b[201~\r')
    chat.until("(ended by length after 3 tokens)")
    chat.until(PROMPT)
    chat.send("three\r")
    chat.until("(ended by length after 3 tokens)")
    chat.until(PROMPT)
    chat.send("\x1b[A\r")
    chat.until("(ended by length after 3 tokens)")
    chat.until(PROMPT)
    file = tmp_path / "chat.json"
    chat.send(f"/save {file}\r")
    chat.until(PROMPT)
    chat.send("/exit\r")
    assert chat.code() == 0
    asked = [message["content"] for message in json.loads(file.read_text())["messages"][::2]]
    assert asked == ["one\ntwo", '"""Doc.\nimport os', "three", "three"]


def test_markdown_on_a_terminal(terminal: Open, tmp_path: Path) -> None:
    """Rendered and safe: what a template puts into the mouth of the model is shown as /system shows it, cleaned."""
    chat = terminal("-n", "30")
    chat.send("/system \x16\x1b]0;title\x16\x07\r")  # Ctrl-V takes the next key as it is
    chat.until(PROMPT)
    chat.send("/system\r")
    assert r"\x1b]0;title\x07" in chat.until(PROMPT)
    chat.send("ROMEO:\r")
    drawn = chat.until("(ended by length after 30 tokens)")
    assert "\x1b[2K" in drawn  # a paragraph was drawn before it was finished
    assert "ROMEO" in _ESCAPES.sub("", chat.shown)
    chat.until(PROMPT)
    chat.send("\x04")
    assert chat.code() == 0


def test_answers_to_a_file_and_messages_from_a_keyboard(terminal: Open, tmp_path: Path) -> None:
    """Only answers are in the file; the prompt and all that is said beside them is on the terminal."""
    with (tmp_path / "out").open("wb") as out:
        chat = terminal("-n", "5", stdout=out.fileno())
    chat.send("ROMEO:\r")
    chat.until("(ended by length after 5 tokens)")
    chat.until(PROMPT)
    chat.send("\x04")
    assert chat.code() == 0
    demo = core.load("demo:mistral")
    expected = demo.generate("ROMEO:\n\n", max_tokens=5, temperature=0).text
    assert (tmp_path / "out").read_text() == f"{expected}\n"


def test_an_answer_that_is_stopped_at_once(terminal: Open) -> None:
    """Two Ctrl-C: the second does not wait for a good moment, and the program goes on all the same."""
    chat = terminal("-n", "2000", "--plain")
    chat.send("ROMEO:\r")
    chat.until("ROMEO:\r\n")
    chat.until("\n")
    chat.send("\x03\x03")
    chat.until("(stopped;")
    chat.until(PROMPT)
    chat.send("/exit\r")
    assert chat.code() == 0


class Typed:
    """Lines as somebody types them; what comes after the last raises ``end``."""

    def __init__(self, *lines: str, end: Exception) -> None:
        self._lines, self._end = iter(lines), end

    def __call__(self, prompt: str) -> str:
        for line in self._lines:
            return line
        raise self._end


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_that_nobody_has_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], debug: bool
) -> None:
    """It is said, what was said before is kept, and the conversation goes on."""
    file = tmp_path / "chat.json"
    typed = Typed("one", "two", "three", f"/save {file}", end=EOFError())
    said: list[str] = []
    stream = LanguageModel.stream

    def line(prompt: str) -> str:
        said.append(typed(prompt))
        return said[-1]

    def failing(*arguments: Any, **options: Any) -> Iterator[GenerationChunk]:
        yield from itertools.islice(stream(*arguments, **options), 2 if said[-1] == "two" else None)
        if said[-1] == "two":  # as MLX says it, and nobody is to say it to a terminal
            raise RuntimeError("[malloc] no memory\x1b[2J")

    monkeypatch.setattr(LanguageModel, "stream", failing)
    chat = core.Conversation(core.load("demo:mistral"), chat_template=PLAIN_TEMPLATE, max_tokens=3, temperature=0)
    assert Repl(chat, line, PlainScreen(str), interactive=True, debug=debug).run() == 0
    shown = capsys.readouterr().err
    assert r"error: RuntimeError: [malloc] no memory\x1b[2J" in shown
    assert "This is a fault of corelm or of a plugin" in shown
    assert "\x1b" not in shown
    assert ("Traceback" in shown) is debug
    asked = [message["content"] for message in json.loads(file.read_text())["messages"][::2]]
    assert asked == ["one", "three"]


@pytest.mark.parametrize("interactive", [False, True])
def test_an_error_of_reading_ends_it(interactive: bool) -> None:
    """The next line would raise it again, and so on for ever."""
    chat = core.Conversation(core.load("demo:mistral"), chat_template=PLAIN_TEMPLATE)
    with pytest.raises(ValueError, match="closed file"):
        Repl(chat, Typed(end=ValueError("closed file")), PlainScreen(str), interactive=interactive).run()
