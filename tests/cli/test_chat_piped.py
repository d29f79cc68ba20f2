"""``corelm chat`` with messages from a pipe: answers on stdout and nothing else, commands, errors, exit codes."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import core
from core.chat import Conversation
from core.language_model import LanguageModel
from tests.cli.checkpoints import with_chat_template
from tests.cli.conftest import Outcome, Run
from tests.fixtures import STORIES, oracle

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
Talk = Callable[..., Outcome]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_chat_template(STORIES, tmp_path_factory.mktemp("chat") / "model", TEMPLATE)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LanguageModel:
    return core.load(checkpoint)


@pytest.fixture
def talk(corelm: Run, monkeypatch: pytest.MonkeyPatch, checkpoint: Path, model: LanguageModel) -> Talk:
    """Runs ``corelm chat`` with what is piped into it, on a model that is loaded already."""

    def run(lines: str | bytes, *options: str | Path) -> Outcome:
        data = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        monkeypatch.setattr(core, "load", lambda *_, **__: model)
        return corelm("chat", "--model", checkpoint, "-n", "8", *options)

    return run


def answers(model: LanguageModel, *messages: str, **options: Any) -> str:
    """The answers to messages one after another, each with a line end."""
    chat = Conversation(model, max_tokens=8, **options)
    return "".join(chat.generate(message).text + "\n" for message in messages)


def test_a_message_a_line(talk: Talk, model: LanguageModel) -> None:
    outcome = talk("Once upon a time\n\n  Tom — ran\nThe end")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == answers(model, "Once upon a time", "  Tom — ran", "The end")


def test_messages_of_several_lines(talk: Talk, model: LanguageModel) -> None:
    piped = 'One \\\nday\n"""\na\n\n/b\\\n"""\n"""c"""\n//d\n/help\\ \n'
    outcome = talk(piped.removesuffix("/help\\ \n"))
    assert outcome.out == answers(model, "One \nday", "a\n\n/b\\", "c", "/d")


def test_the_prompt_of_a_turn_is_what_is_new(talk: Talk, model: LanguageModel) -> None:
    outcome = talk("Once upon a time\n/stats\nTom ran\n/stats\n")
    new = [int(number) for number in re.findall(r"^prompt    (\d+) new tokens, [\d.]+ tok/s$", outcome.out, re.M)]
    chat = Conversation(model, max_tokens=8)
    assert new == [len(chat.generate(message).prompt_ids) for message in ("Once upon a time", "Tom ran")]
    assert f"context   {chat.cached_tokens} tokens" in outcome.out
    assert "sampling  greedy\n" in outcome.out


def test_saved_loaded_and_gone_on(talk: Talk, model: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "a chat.json"
    first = talk(f"Once upon a time\n/save {file}\n", "--system", "Stories")
    assert first.code == 0
    said = answers(model, "Once upon a time", "And?", system="Stories").splitlines(keepends=True)
    assert first.out == said[0]
    assert json.loads(file.read_text())["messages"] == [
        {"role": "system", "content": "Stories"},
        {"role": "user", "content": "Once upon a time"},
        {"role": "assistant", "content": said[0][:-1]},
    ]
    second = talk(f"/load {file}\nAnd?\n/system\n")
    assert second.out == said[1] + "Stories\n"


def test_undo_reset_and_the_system_prompt(talk: Talk, model: LanguageModel) -> None:
    outcome = talk("One\nTwo\n/undo\nTwo\n/reset\n/system Be brief.\n/system\nOne\n/system -\n/system\n")
    one, two = answers(model, "One", "Two").splitlines()
    brief = answers(model, "One", system="Be brief.")
    assert outcome.out == f"{one}\n{two}\n{two}\nBe brief.\n{brief}(none)\n"


def test_regenerating(talk: Talk, model: LanguageModel) -> None:
    """A seed moves on, or the same answer would come again."""
    outcome = talk("One\n/regen\n/regen\nTwo\n/regen\n", "--temperature", "1.5", "--seed", "5")
    chat = Conversation(model, max_tokens=8, temperature=1.5)
    expected = [chat.generate("One", seed=5).text]
    for seed in (6, 7):
        list(chat.regenerate(seed=seed))
        expected.append(chat.messages[-1]["content"])
    expected.append(chat.generate("Two", seed=5).text)
    list(chat.regenerate(seed=6))
    expected.append(chat.messages[-1]["content"])
    assert outcome.out == "".join(f"{text}\n" for text in expected)
    assert len(set(expected)) == 5
    assert "the same again" in talk("One\n/regen\n").err


def test_help_and_exit(talk: Talk) -> None:
    outcome = talk("/help\n/exit\nnobody answers this\n")
    assert outcome.code == 0
    for command in ("help", "reset", "save", "load", "regen", "undo", "stats", "system", "exit"):
        assert f"\n/{command}" in "\n" + outcome.out
    assert outcome.out.endswith("kept.\n")


FAILURES = {
    "/nope\n": (2, "there is no command /nope"),
    "/save\n": (2, "/save which file?"),
    "/load /does/not/exist\n": (1, "/does/not/exist: cannot be read"),
    "/save /does/not/exist.json\n": (1, "cannot be written"),
    "/load a\0b\n": (1, r"a\x00b: cannot be read"),
    "/save a\0b\n": (1, r"a\x00b: cannot be written"),
    "/load ~nobody-of-this-name/a.json\n": (2, "nobody's home directory is ~nobody-of-this-name"),
    "/regen\n": (1, "there is no answer to regenerate"),
    "/undo\n": (2, "there is nothing to take back"),
    "/stats\n": (2, "before the first answer"),
    '"""\nno end\n': (2, "the input ends within a message"),
    b"caf\xe9\n": (2, "not UTF-8"),
}


@pytest.mark.parametrize("piped", FAILURES, ids=[problem for _, problem in FAILURES.values()])
def test_the_first_error_ends_it(talk: Talk, piped: Any) -> None:
    code, problem = FAILURES[piped]
    data = piped if isinstance(piped, bytes) else piped.encode()
    outcome = talk(b"/system x\n/system\n" + data + b"Two\n" * (b"no end" not in data))
    assert (outcome.code, outcome.out) == (code, "x\n")
    assert problem in outcome.err
    assert len(outcome.messages) == 1


def test_a_full_context(talk: Talk) -> None:
    lines = "Once upon a time\n" * 6
    dropped = talk(lines, "--context", "60")
    assert dropped.code == 0
    assert dropped.err == "note: the context is full; the first 6 messages are no longer sent to the model\n"
    stopped = talk(lines, "--context", "60", "--context-policy", "stop")
    assert stopped.code == 1
    assert stopped.err.startswith("error: the conversation is longer than the model's context")
    assert dropped.out.startswith(stopped.out)
    assert stopped.out
    assert talk("x\n", "--context", "3").code == 2


def test_a_model_without_a_template(corelm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Paragraphs, and it is said; a template of one's own is taken instead."""
    command = ("chat", "-m", "demo:mistral", "-n", "5", "-t", "0")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ROMEO:\\\nWho?\n")))
    outcome = corelm(*command)
    demo = core.load("demo:mistral")
    plain = demo.generate("ROMEO:\nWho?\n\n", max_tokens=5, temperature=0).text
    assert (outcome.code, outcome.out) == (0, f"{plain}\n")
    assert outcome.err.startswith("note: the model has no chat template")
    (tmp_path / "own.jinja").write_text("{{ bos_token }}{{ messages[-1].content }},\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ROMEO\n")))
    outcome = corelm(*command, "--chat-template", tmp_path / "own.jinja")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == demo.generate("ROMEO,", max_tokens=5, temperature=0).text + "\n"


def test_control_characters_reach_a_pipe_as_they_are(
    talk: Talk, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.chat.answer.AnswerText.add", lambda self, text, token_id: "\x1b[1m" if text else "")
    assert "\x1b[1m" in talk("One\n").out


def test_what_is_wrong_is_said_before_a_model_is_opened(corelm: Run) -> None:
    for options in (["-t", "-1"], ["--stop", ""], ["--kv-group-size", "32"], ["--context-policy", "forget"], []):
        outcome = corelm("chat", *(["--model", "/does/not/exist"] if options else []), *options)
        assert outcome.code == 2
        assert "/does/not/exist" not in outcome.err


def test_a_model_without_a_tokenizer(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\n")))
    outcome = corelm("chat", "-m", oracle("mistral_swa8"))
    assert outcome.code == 1
    assert "tokenizer.json" in outcome.messages[0]


def test_as_a_process(process: Run, checkpoint: Path, model: LanguageModel) -> None:
    """With the real stdin and stdout, to whose end everything is written; one that is closed is not waited for."""
    outcome = process("chat", "-m", checkpoint, "-n", "8", input=b"One\nTwo\n")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == answers(model, "One", "Two")
