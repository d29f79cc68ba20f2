"""``corelm generate`` for scripts: where prompts come from, lines of JSON, exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import core
import core.cli.progress
import core.generation.loop
from core.language_model import LanguageModel
from core.text.tool_calls import ToolCall, ToolCalls
from tests.cli.checkpoints import with_chat_template
from tests.cli.conftest import Run
from tests.fixtures import STORIES, oracle

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools[0].function.name }} {% endif %}"
    "{% for m in messages %}{{ m.role }} {{ m.content }}, {% endfor %}"
)
MESSAGES = [
    {"role": "user", "content": "Tom ran"},
    {"role": "assistant", "content": "to the"},
    {"role": "user", "content": "tree"},
]
TOOLS = [{"type": "function", "function": {"name": "jump"}}]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_chat_template(STORIES, tmp_path_factory.mktemp("chat") / "model", TEMPLATE)


@pytest.fixture(scope="module")
def model(chat: Path) -> LanguageModel:
    return core.load(chat)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(name: str, value: Any) -> Path:
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def test_a_prompt_from_a_file(corelm: Run, written: Any) -> None:
    story = core.load(STORIES).generate("Once upon\na time", max_tokens=8).text
    file = written("prompt.txt", "Once upon\na time\n")
    assert corelm("generate", "--file", file, "-m", STORIES, "-n", "8").out == f"{story}\n"
    missing = corelm("generate", "--file", file.with_name("none"), "-m", STORIES)
    assert missing.code == 1
    assert "none" in missing.err
    assert len(missing.messages) == 1


def test_a_conversation(corelm: Run, written: Any, chat: Path, model: LanguageModel) -> None:
    """A list, what the chat saves, with a system prompt and tools from the file or from options."""
    command = ("generate", "-m", chat, "-n", "8", "--messages")
    listed = written("list.json", MESSAGES)
    expected = model.generate(MESSAGES, max_tokens=8).text
    assert corelm(*command, listed).out == f"{expected}\n"
    system = [{"role": "system", "content": "Once"}, *MESSAGES]
    expected = model.generate(system, max_tokens=8, tools=TOOLS).text
    tools = written("tools.json", TOOLS)
    assert corelm(*command, listed, "--system", "Once", "--tools", tools).out == f"{expected}\n"
    saved = written("saved.json", {"corelm_conversation": 1, "messages": system, "tools": TOOLS})
    assert corelm(*command, saved).out == f"{expected}\n"


def test_a_system_prompt_before_a_message(corelm: Run, chat: Path, model: LanguageModel) -> None:
    messages = [{"role": "system", "content": "Once"}, {"role": "user", "content": "Tom"}]
    expected = model.generate(messages, max_tokens=8).text
    assert corelm("generate", "Tom", "--system", "Once", "-m", chat, "-n", "8").out == f"{expected}\n"
    refused = corelm("generate", "Tom", "--system", "Once", "-m", "demo:mistral")
    assert refused.code == 1
    assert "no chat template" in refused.err


def test_the_ways_out_of_having_no_chat_template(corelm: Run, tmp_path: Path) -> None:
    """What the hint names is there: a file beside the tokenizer's, and an option of the other command."""
    model = tmp_path / "model"
    shutil.copytree(STORIES, model)
    command = ("generate", "Tom", "--system", "Once", "-m", model, "-n", "8")
    refused = corelm(*command)
    assert (refused.code, refused.out) == (1, "")
    assert "put chat_template.jinja beside the tokenizer's files" in refused.err
    assert "corelm chat --chat-template FILE" in refused.err
    (model / "chat_template.jinja").write_text(TEMPLATE)
    assert corelm(*command).code == 0
    assert "--chat-template FILE" in corelm("chat", "--help").out


def test_the_way_out_of_a_full_context(corelm: Run) -> None:
    long = "Tom ran. " * 105
    refused = corelm("generate", long, "-m", STORIES, "-n", "2")
    assert refused.code == 2
    assert "bound the cache (max_kv_tokens)" in refused.err
    assert corelm("generate", long, "-m", STORIES, "-n", "2", "--max-kv-tokens", "64").code == 0


REFUSED: dict[str, list[str]] = {
    "found none of them": [],
    "found PROMPT, --file": ["x", "--file", "y"],
    "found PROMPT, --messages": ["x", "--messages", "y"],
    "--raw goes without a chat template, and --system": ["x", "--raw", "--system", "s"],
    "--ids goes without a chat template, and --tools": ["1", "--ids", "--tools", "t"],
    "--ids goes without a tokenizer, and --stop": ["1", "--ids", "--stop", "x"],
    "--raw goes without a chat template, and --messages": ["--raw", "--messages", "y"],
    "--stream and --logprobs mean something with --json only": ["x", "--stream"],
    "--kv-group-size has no meaning": ["x", "--kv-group-size", "32"],
    "would end everything at once": ["x", "--stop", ""],
    "argument --logit-bias: is to be ID=X": ["x", "--logit-bias", "3"],
    "argument --logit-bias: invalid": ["x", "--logit-bias", "a=1"],
    "argument --penalty-context: must not be negative": ["x", "--penalty-context", "-1"],
}


@pytest.mark.parametrize("problem", REFUSED)
def test_refused_before_anything_is_opened(corelm: Run, problem: str) -> None:
    outcome = corelm("generate", "-m", "/does/not/exist", *REFUSED[problem])
    assert (outcome.code, outcome.out) == (2, "")
    assert problem in outcome.err
    assert "/does/not/exist" not in outcome.err


def test_files_that_are_no_conversation(corelm: Run, written: Any, chat: Path) -> None:
    bad = written("bad.json", '[{"role": "user"}]')
    outcome = corelm("generate", "--messages", bad, "-m", chat)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == f"error: {bad}: message 1 of 1: has no content\n"
    assert corelm("generate", "--messages", written("empty.json", []), "-m", chat).code == 2
    own = written("own.json", [{"role": "system", "content": "a"}, *MESSAGES])
    assert corelm("generate", "--messages", own, "--system", "b", "-m", chat).code == 2


def lines(text: str) -> list[dict[str, Any]]:
    assert text.isascii()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


RESULT = ["event", "model", "text", "ids", "finish_reason", "tool_calls", "tool_problem", "settings", "statistics"]


def test_lines_of_json(corelm: Run) -> None:
    command = ("generate", "Once upon a time", "-m", STORIES, "-n", "8", "-t", "0.5", "--seed", "3", "--json")
    outcome = corelm(*command)
    assert (outcome.code, outcome.err) == (0, "")
    (result,) = lines(outcome.out)
    model = core.load(STORIES)
    expected = model.generate("Once upon a time", max_tokens=8, temperature=0.5, seed=3)
    assert list(result) == RESULT
    assert (result["event"], result["model"]) == ("result", str(STORIES))
    assert (result["text"], result["ids"]) == (expected.text, expected.token_ids)
    assert (result["finish_reason"], result["tool_calls"], result["tool_problem"]) == ("length", [], None)
    assert result["settings"].items() >= {"temperature": 0.5, "seed": 3, "top_p": 1.0, "top_k": 0}.items()
    assert result["statistics"].keys() == {
        "prompt_tokens",
        "prompt_seconds",
        "generated_tokens",
        "decode_seconds",
        "peak_memory",
        "prompt_tps",
        "decode_tps",
    }
    assert result["statistics"]["generated_tokens"] == 8
    *chunks, last = lines(corelm(*command, "--stream").out)
    assert {key: value for key, value in last.items() if key != "statistics"} == {
        key: value for key, value in result.items() if key != "statistics"
    }
    assert "".join(chunk["text"] for chunk in chunks) == expected.text
    assert [chunk["id"] for chunk in chunks] == [*expected.token_ids, None]
    assert all(chunk["event"] == "chunk" for chunk in chunks)


def test_lines_of_json_without_a_tokenizer(corelm: Run) -> None:
    (result,) = lines(corelm("generate", "1 7", "--ids", "-m", oracle("mistral_swa8"), "-n", "3", "--json").out)
    assert result["text"] is None
    assert len(result["ids"]) == 3


def test_tool_calls_in_json(corelm: Run, chat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser's own tests say what a call is; here is what becomes of one."""
    found = ToolCalls("said", (ToolCall("jump", {"high": [1]}, "abcdefgh1"),))
    monkeypatch.setattr("core.text.tool_calls.parse_tool_calls", lambda ids, tokenizer: found)
    (result,) = lines(corelm("generate", "Tom", "-m", chat, "-n", "2", "--json").out)
    assert result["text"] == "said"
    assert result["tool_calls"] == [{"name": "jump", "arguments": {"high": [1]}, "id": "abcdefgh1"}]
    monkeypatch.setattr(
        "core.text.tool_calls.parse_tool_calls", lambda ids, tokenizer: ToolCalls("x", problem="cut off")
    )
    (result,) = lines(corelm("generate", "Tom", "-m", chat, "-n", "2", "--json").out)
    assert (result["tool_calls"], result["tool_problem"]) == ([], "cut off")
    assert result["text"] != "said"


def test_an_error_is_no_line(corelm: Run) -> None:
    outcome = corelm("generate", "x", "-m", "/does/not/exist", "--json")
    assert (outcome.code, outcome.out) == (1, "")


def test_stdin_with_json(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Écris\n".encode())))
    (result,) = lines(corelm("generate", "-", "-m", STORIES, "-n", "2", "--json").out)
    assert result["statistics"]["prompt_tokens"] == len(core.load(STORIES).encode("Écris"))


def test_options_reach_the_stream(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that were given; the others are the checkpoint's affair."""
    asked: dict[str, Any] = {}

    def stream(self: LanguageModel, prompt: Any, **options: Any) -> Any:
        asked.update(options, prompt=prompt)
        raise core.errors.CheckpointError("enough")

    monkeypatch.setattr(LanguageModel, "stream", stream)
    monkeypatch.setattr("core.generation.Sampling", lambda **_: core.generation.sampling.Sampling())
    assert corelm("generate", "x", "-m", STORIES).err == "error: enough\n"
    assert asked == {"prompt": "x", "tools": None, "progress": None}
    options = "--top-k 3 --top-p 0.5 --min-p 0.1 --typical-p 0.9 --xtc-probability 0.2 --xtc-threshold 0.3"
    options += " --repetition-penalty 1.1 --presence-penalty 0.4 --frequency-penalty 0.6 --penalty-context 7"
    options += " --dry-multiplier 0.8 --dry-base 1.75 --dry-allowed-length 2 --dry-context 9 --dry-breakers 1,2"
    options += " --logit-bias 4=-inf --logit-bias 5=1.5 --order temperature,top_k --seed 8 --temperature 0.7"
    options += r" --max-tokens 6 --stop a\n --stop b\\n --max-kv-tokens 64 --kv-bits 8 --kv-group-size 32"
    corelm("generate", "x", "-m", STORIES, "--json", "--logprobs", "2", *options.split())
    assert asked == {
        "prompt": "x",
        "tools": None,
        "progress": None,
        "temperature": 0.7,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "xtc_probability": 0.2,
        "xtc_threshold": 0.3,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.6,
        "penalty_context": 7,
        "dry_multiplier": 0.8,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_context": 9,
        "dry_breakers": (1, 2),
        "logit_bias": {4: float("-inf"), 5: 1.5},
        "order": ("temperature", "top_k"),
        "seed": 8,
        "max_tokens": 6,
        "stop": ["a\n", "b\\n"],
        "max_kv_tokens": 64,
        "kv_bits": 8,
        "kv_group_size": 32,
        "logprobs": 2,
    }


def test_progress_of_a_long_prompt(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told as the prompt is processed; the bar is gone when the text comes."""
    told: list[Any] = []

    @contextlib.contextmanager
    def bar() -> Iterator[Any]:
        yield lambda done, total: told.append((done, total))
        told.append("gone")

    prefill = core.generation.loop._prefill
    monkeypatch.setattr("core.cli.progress.prompt_progress", bar)
    monkeypatch.setattr("core.cli.generate._Output.add", lambda self, chunk: told.append("text"))
    monkeypatch.setattr(
        "core.generation.loop._prefill",
        lambda model, prompt, cache, chunk, *more: prefill(model, prompt, cache, 64, *more),
    )
    ids = core.load(STORIES).encode("a " * 100)
    assert corelm("generate", "a " * 100, "-m", STORIES, "-n", "1").code == 0
    assert told == [*((done, len(ids)) for done in range(64, len(ids), 64)), "gone", "text", "text"]


def test_the_bar_of_a_prompt_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with core.cli.progress.prompt_progress() as progress:
        assert progress is None  # no terminal here
    assert capsys.readouterr() == ("", "")
