"""``corelm generate`` in a pipe: text on stdin comes before the prompt or in its place, and is not waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

import core
from core.cli import sources
from core.errors import UsageError
from core.language_model import LanguageModel
from tests.cli.checkpoints import with_chat_template
from tests.cli.conftest import ROOT, Run
from tests.fixtures import STORIES

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }}, {% endfor %}"
Pipe = Callable[[bytes], int]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_chat_template(STORIES, tmp_path_factory.mktemp("chat") / "model", TEMPLATE)


@pytest.fixture(scope="module")
def model(chat: Path) -> LanguageModel:
    return core.load(chat)


@pytest.fixture(autouse=True)
def _loaded(monkeypatch: pytest.MonkeyPatch, model: LanguageModel) -> None:
    """Commands of this process take the model that is there."""
    monkeypatch.setattr("core.cli.generate.load_model", lambda args, **_: model)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    """Makes stdin a pipe with these bytes in it; returns its other end, which is open."""
    ends: list[int] = []
    files: list[TextIO] = []

    def make(data: bytes) -> int:
        ours, theirs = os.pipe()
        ends.append(theirs)
        os.write(theirs, data)
        files.append(os.fdopen(ours))
        monkeypatch.setattr(sys, "stdin", files[-1])
        return theirs

    yield make
    for end in ends:
        os.close(end)
    for file in files:
        file.close()


@pytest.fixture
def piped(pipe: Pipe) -> Callable[[bytes], None]:
    """Makes stdin a pipe with these bytes in it, and their end."""

    def make(data: bytes) -> None:
        end, nowhere = pipe(data), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, end)
        os.close(nowhere)

    return make


def told(model: LanguageModel, text: str) -> str:
    return model.generate([{"role": "user", "content": text}], max_tokens=8).text + "\n"


@pytest.mark.parametrize(
    ("data", "prompt", "expected"),
    [
        (" Tom ran\n to\n", "Why?", " Tom ran\n to\n\nWhy?"),
        ("Tom\r\n", "Why?", "Tom\n\nWhy?"),
        ("Tom\n\n", "", "Tom\n\n\n"),
        ("", "Why?", "Why?"),
        ("\n", "Why?", "Why?"),
        ("Tom\n", None, "Tom"),
        ("Tom\n", "-", "Tom"),
    ],
)
def test_what_is_piped_in_comes_first(
    corelm: Run,
    piped: Callable[[bytes], None],
    chat: Path,
    model: LanguageModel,
    data: str,
    prompt: str | None,
    expected: str,
) -> None:
    piped(data.encode())
    outcome = corelm("generate", "-m", chat, "-n", "8", *([] if prompt is None else [prompt]))
    assert (outcome.code, outcome.out, outcome.err) == (0, told(model, expected), "")


def test_a_raw_text_too(corelm: Run, piped: Callable[[bytes], None], chat: Path, model: LanguageModel) -> None:
    piped(b"Once upon a time\n")
    outcome = corelm("generate", "--raw", "Tom", "-m", chat, "-n", "8")
    assert outcome.out == model.generate("Once upon a time\n\nTom", max_tokens=8).text + "\n"


def test_a_file_on_stdin(
    corelm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chat: Path, model: LanguageModel
) -> None:
    (tmp_path / "text").write_text("Tom\n")
    with (tmp_path / "text").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert corelm("generate", "-m", chat, "-n", "8", "Why?").out == told(model, "Tom\n\nWhy?")


def test_where_nothing_can_come_nothing_is_asked(
    corelm: Run, monkeypatch: pytest.MonkeyPatch, pipe: Pipe, chat: Path, model: LanguageModel, tmp_path: Path
) -> None:
    """/dev/null, a terminal, and a stdin that is closed; and beside a file, or ids, no pipe is touched."""
    terminal, keyboard = os.openpty()
    with Path(os.devnull).open() as nothing, os.fdopen(keyboard) as typed:
        for stdin in (nothing, typed, None):
            monkeypatch.setattr(sys, "stdin", stdin)
            outcome = corelm("generate", "-m", chat, "-n", "8", "Why?")
            assert (outcome.out, outcome.err) == (told(model, "Why?"), "")
            refused = corelm("generate", "-m", chat)
            assert refused.code == 2
            assert "one prompt is needed (expected PROMPT or --file or --messages, or text that is pi" in refused.err
    os.close(terminal)
    pipe(b"Tom")  # and no end
    prompt = tmp_path / "prompt"
    prompt.write_text("Why?")
    assert corelm("generate", "-m", chat, "--ids", "1 2", "-n", "1").code == 0
    assert corelm("generate", "-m", chat, "--file", prompt, "-n", "1").code == 0
    assert os.read(sys.stdin.fileno(), 100) == b"Tom"


def test_a_pipe_that_nobody_writes_to_is_given_up(
    corelm: Run, monkeypatch: pytest.MonkeyPatch, pipe: Pipe, chat: Path, model: LanguageModel
) -> None:
    """What a script has inherited is no reason to hang; what comes in it later is not taken."""
    monkeypatch.setattr(sources, "_NOTE_AFTER", 0.0)
    monkeypatch.setattr(sources, "_PATIENCE", 0.0)
    end = pipe(b"")
    outcome = corelm("generate", "-m", chat, "-n", "8", "Why?")
    assert (outcome.code, outcome.out) == (0, told(model, "Why?"))
    note, warning = outcome.messages
    assert note.startswith("note: nothing has come on stdin yet")
    assert warning == "warning: nothing has come on stdin, and the prompt is answered alone"
    os.write(end, b"later")
    assert os.read(sys.stdin.fileno(), 100) == b"later"


def test_a_pipe_in_which_something_comes_late_is_waited_for(
    corelm: Run, monkeypatch: pytest.MonkeyPatch, pipe: Pipe, chat: Path, model: LanguageModel
) -> None:
    monkeypatch.setattr(sources, "_NOTE_AFTER", 0.0)
    end = pipe(b"")
    notes: list[str] = []

    def say(text: str) -> None:
        """Says it, and the writer, who was slow, writes."""
        notes.append(text)
        os.write(end, b"Tom\n")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, end)
        os.close(nowhere)

    monkeypatch.setattr(sources, "say", say)
    assert corelm("generate", "-m", chat, "-n", "8", "Why?").out == told(model, "Tom\n\nWhy?")
    assert len(notes) == 1


def test_what_is_piped_in_is_text(corelm: Run, piped: Callable[[bytes], None]) -> None:
    piped(b"caf\xe9")
    outcome = corelm("generate", "-m", "/does/not/exist", "Why?")
    assert outcome.code == 2
    assert "the text on stdin is not UTF-8 (found byte 0xe9)" in outcome.err


@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-"])
def test_a_stdin_that_is_closed(closed: str) -> None:
    """The first file that is opened gets its number, which MLX takes for a failure."""
    command = [sys.executable, "-W", "error", "-m", "core", "generate", "Once", "-m", str(STORIES), "-n", "8"]
    shell = ["sh", "-c", f'"$@" {closed}', "sh", *command]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, timeout=60, check=False)
    expected = core.load(STORIES).generate("Once", max_tokens=8).text
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{expected}\n", b"")


def test_a_file_without_an_end_is_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_LIMIT", 100)
    with pytest.raises(UsageError, match="/dev/zero is too large for a prompt or a template"):
        sources.read_file("/dev/zero")
