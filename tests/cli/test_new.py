"""``corelm new``: what it writes, under which names, and what it refuses. That it works is in ``tests/thirdparty``."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import core
from core.cli import new
from core.scaffold import LIKE, Names, package_files
from core.scaffold.names import requirement
from tests.cli.conftest import ROOT, Run

FILES = {
    ".github/workflows/test.yml",
    ".gitignore",
    "LICENSE",
    "README.md",
    "corelm_stable_lm/__init__.py",
    "corelm_stable_lm/block.py",
    "corelm_stable_lm/config.py",
    "corelm_stable_lm/weights.py",
    "pyproject.toml",
    "tests/config.json",
    "tests/test_stable_lm.py",
}


@pytest.mark.parametrize("like", LIKE)
def test_what_is_written(corelm: Run, tmp_path: Path, like: str) -> None:
    outcome = corelm("new", "stable-lm", "--like", like, "--dir", tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    place = tmp_path / "corelm-stable-lm"
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    texts = {str(file.relative_to(place)): file.read_text() for file in place.rglob("*") if file.is_file()}
    assert texts.keys() == FILES | ({"corelm_stable_lm/moe.py"} if like == "mixtral" else set())
    sources = "".join(text for name, text in texts.items() if name != "README.md")
    assert not re.search(r"mistral|mixtral|\$(?!\{\{)", sources, re.IGNORECASE)
    assert "class StableLmConfig(RotaryConfig):" in sources
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    assert project["entry-points"] == {"core.architectures": {"stable-lm": "corelm_stable_lm"}}
    assert project["dependencies"] == [requirement(core.__version__)]
    for check in (["check"], ["format", "--check"]):
        settings = ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
        ruff = [sys.executable, "-m", "ruff", *check, *settings, str(place)]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("model_type", "distribution", "module", "prefix"),
    [
        ("olmo2", "corelm-olmo2", "corelm_olmo2", "Olmo2"),
        ("gpt_neox", "corelm-gpt-neox", "corelm_gpt_neox", "GptNeox"),
        ("qwen2.5-VL", "corelm-qwen2-5-vl", "corelm_qwen2_5_vl", "Qwen25Vl"),
        ("a--b", "corelm-a-b", "corelm_a_b", "AB"),
        ("x", "corelm-x", "corelm_x", "X"),
    ],
)
def test_names(model_type: str, distribution: str, module: str, prefix: str) -> None:
    names = Names(model_type)
    assert (names.distribution, names.module, names.prefix) == (distribution, module, prefix)
    written = tomllib.loads(package_files(names, "mistral")["pyproject.toml"])
    assert written["project"]["entry-points"]["core.architectures"] == {model_type: module}


@pytest.mark.parametrize("model_type", ["", "2b", "-x", "x-", "a b", "a/b", "../x", "ölmo", "a=b", "a:b", "x" * 41])
def test_what_is_no_name_is_refused(corelm: Run, tmp_path: Path, model_type: str) -> None:
    outcome = corelm("new", "--dir", tmp_path, "--", model_type)
    assert (outcome.code, outcome.out, len(outcome.messages)) == (2, "", 1)
    assert outcome.err.startswith(f"error: {model_type!r} is not a model_type that a package can be named after")
    assert not list(tmp_path.iterdir())


def test_a_built_in_type_is_refused(corelm: Run, tmp_path: Path) -> None:
    outcome = corelm("new", "mixtral", "--dir", tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: model_type 'mixtral' is built in, and that plugin would come before this one\n"


@pytest.mark.parametrize("kind", ["directory", "file", "dangling"])
def test_nothing_is_overwritten(corelm: Run, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "corelm-oak"
    if kind == "directory":
        place.mkdir()
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    outcome = corelm("new", "oak", "--dir", tmp_path)
    assert (outcome.code, outcome.out, len(outcome.messages)) == (1, "", 1)
    assert outcome.err.startswith(f"error: {place}: it is there already")
    assert list(tmp_path.iterdir()) == [place]
    assert "Traceback" in corelm("new", "oak", "--dir", tmp_path, "--debug").err


def test_a_directory_that_is_not_there(corelm: Run, tmp_path: Path) -> None:
    outcome = corelm("new", "oak", "--dir", tmp_path / "absent")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == f"error: {tmp_path / 'absent'}: there is no such directory\n"


def test_a_failure_leaves_nothing_behind(corelm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    outcome = corelm("new", "oak", "--dir", tmp_path)
    assert (outcome.code, outcome.out, len(outcome.messages)) == (1, "", 1)
    assert not list(tmp_path.iterdir())


def test_the_command_offers_what_there_is() -> None:
    parser = argparse.ArgumentParser()
    new.add_arguments(parser)
    (like,) = (action for action in parser._actions if action.dest == "like")
    assert tuple(like.choices or ()) == LIKE
