"""Bad checkpoints at the command line: exit code 1, the error of the library, and no traceback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.cli import main
from tests.fixtures import STORIES
from tests.fixtures.variants import variant
from tests.loading.damage import DAMAGES, Damage

ROOT = Path(__file__).parents[2]


def built(damage: Damage, directory: Path) -> Path:
    """The damaged checkpoint, with a tokenizer, so that nobody stops for want of one."""
    path = damage.build(directory)
    if path.is_dir() and not damage.tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(STORIES / name, path / name)
    return path


def check(text: str, damage: Damage) -> None:
    assert "Traceback" not in text
    said = " ".join(text.split())  # lines are folded to the terminal's width
    for part in damage.says:
        assert part in said


@pytest.mark.parametrize("name", DAMAGES)
def test_generate_says_what_is_wrong(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage = DAMAGES[name]
    path = built(damage, tmp_path / "model")
    assert main(["generate", "Hello", "--model", str(path), "--max-tokens", "2"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert damage.hint in " ".join(captured.err.split())
    check(captured.err, damage)


@pytest.mark.parametrize("name", [name for name, damage in DAMAGES.items() if damage.planned and not damage.tokenizer])
def test_inspect_says_what_headers_tell(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage = DAMAGES[name]
    path = built(damage, tmp_path / "model")
    assert main(["inspect", str(path)]) == 1
    captured = capsys.readouterr()
    check(captured.out + captured.err, damage)


@pytest.mark.parametrize("command", [["inspect"], ["generate", "Hello", "--model"]])
def test_the_program_itself_exits_with_1(command: list[str], tmp_path: Path) -> None:
    damage = DAMAGES["a truncated shard"]
    path = built(damage, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-m", "core", *command, str(path)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 1
    check(done.stderr, damage)


def test_strict_refuses_keys_that_nobody_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(variant(STORIES, tmp_path / "model", config={"surprise": 1}))
    assert main(["inspect", path]) == 0
    assert "surprise" in capsys.readouterr().out
    assert main(["inspect", path, "--strict"]) == 1
    assert "'surprise'" in capsys.readouterr().err
