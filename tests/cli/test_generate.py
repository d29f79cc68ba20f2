"""``corelm generate``: what a prompt means, what is printed where, and what reaches ``core.load``."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import core
import core.loading
from core.language_model import LanguageModel
from tests.cli.checkpoints import with_chat_template
from tests.cli.conftest import Run
from tests.fixtures import EXPECTED_STORY, STORIES, oracle
from tests.fixtures.variants import Tensor, Tensors, variant

TEMPLATE = "{{ bos_token }}{{ messages[0].role }}, {{ messages[0].content }}"


@pytest.fixture(scope="module")
def stories() -> LanguageModel:
    return core.load(STORIES)


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_the_text_and_a_line_end(corelm: Run) -> None:
    outcome = corelm("generate", "Once upon a time", "--model", STORIES, "--max-tokens", "40")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("\n")
    assert len(outcome.out) > 40
    assert EXPECTED_STORY.read_text().startswith("Once upon a time" + outcome.out[:-1])


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_prompt_from_stdin_loses_only_its_line_end(
    corelm: Run, monkeypatch: pytest.MonkeyPatch, stories: LanguageModel, ending: bytes
) -> None:
    prompt = " Lily\n\nsaid — "
    stdin(monkeypatch, prompt.encode() + ending)
    outcome = corelm("generate", "-", "--model", STORIES, "-n", "8", "--stats")
    assert outcome.out == stories.generate(prompt, max_tokens=8).text + "\n"
    assert f"prompt    {len(stories.encode(prompt))} tokens (raw)" in outcome.err


def test_stdin_that_is_no_text(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"caf\xe9")
    outcome = corelm("generate", "-", "--model", STORIES)
    assert (outcome.code, outcome.out) == (2, "")
    assert "0xe9" in outcome.err


def test_the_chat_template_applies_unless_raw(corelm: Run, tmp_path: Path) -> None:
    chat = with_chat_template(STORIES, tmp_path / "chat", TEMPLATE)
    model = core.load(chat)
    answer = model.generate([{"role": "user", "content": "Tom ran"}], max_tokens=12).text
    continued = model.generate("Tom ran", max_tokens=12).text
    assert answer != continued
    command = ("generate", "Tom ran", "--model", chat, "-n", "12", "--stats")
    outcome = corelm(*command)
    assert outcome.out == f"{answer}\n"
    assert "(chat template)" in outcome.err
    outcome = corelm(*command, "--raw")
    assert outcome.out == f"{continued}\n"
    assert "(raw)" in outcome.err


def test_the_seed_that_was_used_repeats_the_text(corelm: Run) -> None:
    command = ("generate", "One day", "--model", STORIES, "-n", "30", "-t", "1.5", "--top-k", "50", "--top-p", "0.9")
    first = corelm(*command, "--stats")
    match = re.search(r"sampling  temperature 1\.5, top_p 0\.9, top_k 50, seed (\d+)\n", first.err)
    assert match
    assert corelm(*command, "--seed", match[1]).out == first.out
    assert corelm(*command, "--seed", str(int(match[1]) ^ 1)).out != first.out


def test_statistics(corelm: Run) -> None:
    outcome = corelm("generate", "One day", "--model", STORIES, "-n", "10", "--stats")
    number = r"[\d,.]+"
    expected = (
        rf"prompt    {number} tokens \(raw\), {number} tok/s\n"
        rf"decode    10 tokens, {number} tok/s, ended by length\n"
        rf"memory    {number} [KM]iB at most\n"
        r"sampling  greedy\n"
    )
    assert re.fullmatch(expected, outcome.err)


@pytest.mark.parametrize(
    "arguments",
    [("-t", "-1"), ("-t", "nan"), ("--top-p", "0"), ("--top-p", "1.1"), ("--top-k", "-1"), ("-n", "-1"), ("-n", "x")],
)
def test_bad_settings_are_refused_before_anything_is_opened(corelm: Run, arguments: tuple[str, ...]) -> None:
    outcome = corelm("generate", "x", "--model", "/does/not/exist", *arguments)
    assert outcome.code == 2
    assert "/does/not/exist" not in outcome.err


def test_a_model_must_be_named_and_the_error_names_one(corelm: Run) -> None:
    outcome = corelm("generate", "x")
    assert outcome.code == 2
    assert "--model demo:mistral" in outcome.err


def test_options_reach_the_load(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    asked: dict[str, Any] = {}

    def load(source: str, **options: Any) -> LanguageModel:
        asked.update(options, source=source)
        raise core.errors.CheckpointError("enough")

    monkeypatch.setattr(core, "load", load)
    command = "generate x -m org/name --plugin P --revision R --format mistral --dtype float16 --strict --quantize 4"
    assert corelm(*command.split(), "--no-memory-check", "--no-finite-check").err == "error: enough\n"
    assert asked == {
        "source": "org/name",
        "plugin": "P",
        "revision": "R",
        "format": "mistral",
        "dtype": mx.float16,
        "quantize": 4,
        "dequantize": False,
        "approximate": False,
        "tokenizer": True,
        "strict": True,
        "check_memory": False,
        "check_finite": False,
        "progress": None,
    }
    corelm("generate", "x", "-m", "org/name")
    assert asked == {
        "source": "org/name",
        "plugin": None,
        "revision": None,
        "format": None,
        "dtype": None,
        "quantize": None,
        "dequantize": False,
        "approximate": False,
        "tokenizer": True,
        "strict": False,
        "check_memory": True,
        "check_finite": True,
        "progress": None,
    }


def test_not_a_number_in_the_weights(corelm: Run, tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        values = tensors["model.norm.weight"].floats
        values[3] = float("nan")
        return tensors | {"model.norm.weight": Tensor.of(values, "F32")}

    spoilt = variant(STORIES, tmp_path / "nan", tensors=spoil)
    outcome = corelm("generate", "x", "--model", spoilt, "-n", "1")
    assert (outcome.code, outcome.out) == (1, "")
    assert "model.norm.weight" in outcome.messages[0]
    assert corelm("generate", "x", "--model", spoilt, "-n", "1", "--no-finite-check").code == 0


def test_a_model_larger_than_the_memory(corelm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.loading.memory, "memory_limits", lambda: (1000, 1000))
    outcome = corelm("generate", "x", "--model", STORIES, "-n", "1")
    assert (outcome.code, outcome.out) == (1, "")
    assert "--no-memory-check" in outcome.err
    assert corelm("generate", "x", "--model", STORIES, "-n", "1", "--no-memory-check").code == 0


@pytest.mark.filterwarnings("default")
def test_keys_that_nobody_reads(corelm: Run, tmp_path: Path) -> None:
    odd = variant(STORIES, tmp_path / "odd", config={"logit_softcap\x1b[1m": 30.0})
    outcome = corelm("generate", "x", "--model", odd, "-n", "1")
    assert outcome.code == 0
    assert outcome.messages[0].startswith(r"warning: nobody reads the config keys logit_softcap\x1b[1m;")
    outcome = corelm("generate", "x", "--model", odd, "-n", "1", "--strict")
    assert outcome.code == 1
    assert outcome.messages[0].startswith("error: ")


def test_without_a_tokenizer(corelm: Run) -> None:
    outcome = corelm("generate", "x", "--model", oracle("mistral_swa8"))
    assert (outcome.code, outcome.out) == (1, "")
    assert "tokenizer.json" in outcome.messages[0]


def test_ids_go_in_and_come_out_without_a_tokenizer(corelm: Run) -> None:
    source = oracle("mistral_swa8")
    found = corelm("generate", "1 7,42", "--ids", "-m", source, "-n", "5")
    expected = core.load(source, tokenizer=False).generate([1, 7, 42], max_tokens=5).token_ids
    assert (found.code, [int(word) for word in found.out.split()]) == (0, expected)
    for prompt in ("1 x", " ", "-1"):
        refused = corelm("generate", "--ids", "-m", source, "--", prompt)
        assert refused.code == 2
        assert "the prompt is token ids" in refused.err


def test_the_progress_bar_is_for_people(process: Run, watched: Run) -> None:
    command = ("generate", "Once", "--model", STORIES, "-n", "1")
    unwatched = process(*command)
    assert unwatched.err == ""
    outcome = watched(*command, NO_COLOR="1")
    assert (outcome.code, outcome.out) == (0, unwatched.out)
    assert "loading" in outcome.err
    assert outcome.err.endswith("\x1b[2K")  # the bar is taken away again
    assert not re.search(r"\x1b\[[0-9;]*[1-9][0-9]*m", outcome.err)  # and had no colours


def test_an_error_on_a_terminal_is_plain(watched: Run) -> None:
    outcome = watched("generate", "x", "--model", "/nowhere")
    assert outcome.code == 1
    assert outcome.err.startswith("error: /nowhere: ")
    assert "\x1b" not in outcome.err
