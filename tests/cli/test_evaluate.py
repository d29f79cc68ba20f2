"""``corelm evaluate``: what it reads, what it prints, and how it fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import core
from tests.cli.checkpoints import quantized
from tests.cli.conftest import Run
from tests.fixtures import STORIES, oracle

TEXT = "Once upon a time, there was a little girl named Lily.\r\nShe loved to play outside — in the park.\n"
SHORT = ("--context", "16", "--stride", "8")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT.encode())
    return file


def test_the_report(corelm: Run, text: Path) -> None:
    found = core.evaluate(core.load(STORIES), TEXT, context=16, stride=8)
    outcome = corelm("evaluate", STORIES, "--text", text, *SHORT)
    assert (outcome.code, outcome.err) == (0, "")
    lines = {line[2:15].strip(): line[15:] for line in outcome.out.splitlines()[1:]}
    assert outcome.out.startswith(f"{STORIES}\n")
    assert lines["model"].startswith("mistral, not quantized, computes in float32 on ")
    assert lines["tokens"] == f"{found.tokens} scored in {found.windows} windows of 16, stride 8"
    assert lines["nats/token"] == f"{found.nats_per_token:.4f} ± {found.standard_error:.4f} (standard error)"
    assert lines["perplexity"] == f"{found.perplexity:.4f}"
    assert lines["bits/byte"] == f"{found.bits_per_byte:.4f} ({len(TEXT.encode())} bytes)"
    assert re.fullmatch(r"[\d.]+ s, [\d,]+ tok/s", lines["time"])


def test_options_of_loading_reach_the_model_and_not_the_reference(corelm: Run, text: Path) -> None:
    outcome = corelm("evaluate", STORIES, "--text", text, "--against", STORIES, "--json", "--quantize", "8", *SHORT)
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["model"]["quantization"] == "8-bit, groups of 64"
    assert found["divergence"]["reference"]["quantization"] == "none"
    assert found["divergence"]["mean"] > 0


def test_json_against_another(corelm: Run, text: Path, tmp_path: Path) -> None:
    coarse = quantized(STORIES, tmp_path / "coarse", lambda path: None if path.endswith("down_proj") else 4)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (coarse / name).write_bytes((STORIES / name).read_bytes())
    outcome = corelm("evaluate", coarse, "--text", text, "--against", STORIES, "--json", "-n", "30", *SHORT)
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert (found["schema"], found["tokens"], found["context"], found["stride"]) == (1, 29, 16, 8)
    assert found["model"]["quantization"] == "4-bit, groups of 32"
    divergence = found["divergence"]
    assert divergence["reference"] == found["model"] | {"source": str(STORIES), "quantization": "none"}
    assert 0 < divergence["median"] <= divergence["p95"] <= divergence["p99"] <= divergence["max"]
    assert 0 < divergence["top1_agreement"] <= 1
    shown = corelm("evaluate", coarse, "--text", text, "--against", STORIES, "-n", "30", *SHORT).out
    assert f"KL           mean {divergence['mean']:.5f}, median {divergence['median']:.5f} nats/token" in shown
    assert f"same top-1   {divergence['top1_agreement']:.2%}" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--text", "t", "--context", "1"),
        ("--text", "t", "--context", "8", "--stride", "9"),
        ("--text", "t", "--stride", "0"),
        ("--text", "t", "--max-tokens", "1"),
        ("--text", "t", "--context", "-4"),
        ("--text", "{text}", "--context", "513"),
    ],
)
def test_what_makes_no_sense_is_2(corelm: Run, text: Path, arguments: tuple[str, ...]) -> None:
    outcome = corelm("evaluate", STORIES, *(argument.format(text=text) for argument in arguments))
    assert (outcome.code, outcome.out) == (2, "")
    assert "error: " in outcome.err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the text is empty"),
        (b"caf\xe9", "not UTF-8 (found byte 0xe9 at offset 3)"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_text_that_cannot_be_read(corelm: Run, tmp_path: Path, data: bytes | None, message: str) -> None:
    file = tmp_path / "strange.txt"
    if data is not None:
        file.write_bytes(data)
    outcome = corelm("evaluate", "/nowhere", "--text", file)  # said before anything is loaded
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"error: {file}: ")
    assert message in outcome.err


def test_a_directory_is_no_text(corelm: Run, tmp_path: Path) -> None:
    outcome = corelm("evaluate", STORIES, "--text", tmp_path)
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: {tmp_path}: the text cannot be read")


def test_models_that_cannot_be_compared(corelm: Run, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in (*oracle("mistral_tied").iterdir(), STORIES / "tokenizer.json", STORIES / "tokenizer_config.json"):
        if file.is_file():
            (other / file.name).write_bytes(file.read_bytes())
    outcome = corelm("evaluate", STORIES, "--text", text, "--against", other)
    assert outcome.code == 1
    assert "vocabularies of 512 and 256 tokens" in outcome.err


def test_the_progress_bar_is_for_people(watched: Run, text: Path) -> None:
    outcome = watched("evaluate", STORIES, "--text", text, "-n", "20", "--json", NO_COLOR="1")
    assert outcome.code == 0
    assert json.loads(outcome.out)["tokens"] == 19
    assert "evaluating" in outcome.err
    assert outcome.err.endswith("\x1b[2K")
