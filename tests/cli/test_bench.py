"""``corelm bench``: what it prints, and how it fails."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from core.benchmark import bandwidth, entry
from core.benchmark.peer_kinds import PEERS
from tests.cli.conftest import Run
from tests.fixtures import STORIES

QUICK = ("--iterations", "2", "--prompt-tokens", "4,9", "--generate", "3")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "memory_bandwidth", lambda: bandwidth.memory_bandwidth(1 << 16))


def test_the_report(corelm: Run, tmp_path: Path) -> None:
    picture = tmp_path / "speed.svg"
    outcome = corelm("bench", STORIES, *QUICK, "--chart", picture)
    assert (outcome.code, outcome.err) == (0, f"chart: {picture}\n")
    lines = outcome.out.splitlines()
    assert lines[0] == str(STORIES)
    facts = {line[2:13].strip(): line[14:] for line in lines[1 : lines.index("")]}
    assert list(facts) == ["model", "device", "versions", "bandwidth", "load", "runs"]
    assert facts["model"].startswith("mistral, 5 layers, ")
    assert facts["runs"].startswith("2 of each length, 3 new tokens")
    rows = [line.split() for line in lines[lines.index("") + 1 :] if "core" in line]
    assert [row[:2] for row in rows] == [["4", "core"], ["9", "core"]]
    assert picture.read_text().startswith("<svg ")


def test_json_of_a_shape(corelm: Run, tmp_path: Path) -> None:
    shape = ("--config", STORIES / "config.json", "--random", "--bits", "4", "--layers", "1")
    outcome = corelm("bench", *shape, *QUICK, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found["schema"] == 1
    assert found["subject"]["random"] is True
    assert found["subject"]["layers"] == 1
    assert (found["iterations"], found["generate"], found["loading"], found["peer"]) == (2, 3, None, None)
    assert set(found["machine"]) >= {"device", "mlx", "core", "python", "system", "bandwidth"}
    for length in found["lengths"]:
        assert set(length["speed"]) == {"first_token", "prefill", "decode", "peak_memory"}
        assert set(length["speed"]["decode"]) == {"median", "min", "max", "values"}
        assert len(length["speed"]["decode"]["values"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "measure what?"),
        (("{model}", "--config", "mistral-7b", "--random"), "a model and --config are two"),
        (("--config", "mistral-7b"), "--config has no weights"),
        (("--config", "mistral-8b", "--random"), "there is no shape of this name"),
        (("--config", "mistral-7b", "--random", "--quantize", "4"), "--quantize is for a model"),
        (("{model}", "--random"), "--random is for --config"),
        (("{model}", "--bits", "4"), "--bits is for --config"),
        (("{model}", "--layers", "1"), "--layers is for --config"),
        (("{model}", "--generate", "1"), "generate is out of range"),
        (("{model}", "--iterations", "0"), "iterations is out of range"),
        (("{model}", "--prompt-tokens", "4,0"), "prompt_tokens is out of range"),
        (("{model}", "--prompt-tokens", "4,x"), "invalid lengths value"),
        (("{model}", "--chart", "speed.png"), "a chart is an SVG"),
        (("{model}", "--chart", "nowhere/speed.svg"), "no such directory"),
        (("{model}", "--against", "ollama"), "'ollama' is not a known peer"),
    ],
)
def test_what_makes_no_sense_is_2(corelm: Run, arguments: tuple[str, ...], message: str) -> None:
    outcome = corelm("bench", *(argument.format(model=STORIES) for argument in arguments))
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


def test_what_is_wrong_is_1(corelm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outcome = corelm("bench", tmp_path / "nowhere", *QUICK)
    assert (outcome.code, len(outcome.messages)) == (1, 1)
    monkeypatch.setitem(PEERS, "mlx-lm", dataclasses.replace(PEERS["mlx-lm"], modules=("no_such_module",)))
    outcome = corelm("bench", STORIES, *QUICK, "--against", "mlx-lm")
    assert (outcome.code, len(outcome.messages)) == (1, 1)
    assert outcome.err.startswith("error: ")
    assert "mlx-lm is not installed" in outcome.err
    assert "Traceback" not in outcome.err
    assert "Traceback" in corelm("bench", STORIES, *QUICK, "--against", "mlx-lm", "--debug").err
