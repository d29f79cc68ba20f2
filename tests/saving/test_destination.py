"""A checkpoint appears whole under its name, or not at all; what was there stays, unless it is replaced on purpose."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import core
from core.errors import SaveError, UsageError
from tests.fixtures import oracle
from tests.saving.compare import assert_same_tensors

ROOT = Path(__file__).resolve().parents[2]
SOURCE = oracle("mistral_swa8")


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    core.convert(SOURCE, tmp_path / "out")  # an empty directory holds nothing to lose
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(SaveError, match="exists already"):
        core.convert(SOURCE, tmp_path / "out")
    with pytest.raises(SaveError, match="exists already"):
        core.save(core.load(SOURCE, tokenizer=False), tmp_path / "out")
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_force_replaces_the_whole_directory_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    core.convert(oracle("mixtral_swa8"), tmp_path / "out", max_shard_size=300_000)
    core.convert(SOURCE, tmp_path / "out", force=True)
    assert_same_tensors(SOURCE, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1


def test_force_replaces_no_directory_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name in ("home", "file"):
        with pytest.raises(SaveError, match="is no checkpoint, and is not replaced"):
            core.convert(SOURCE, tmp_path / name, force=True)
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_source_and_destination_are_two_places(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "models" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "models" / "a")
    for place in ("models/a", "models/a/b", "link", "models"):
        with pytest.raises(UsageError, match="the destination"):
            core.convert(tmp_path / "models" / "a", tmp_path / place, force=True)
    with pytest.raises(UsageError, match="the destination"):
        core.save(core.load(tmp_path / "models" / "a", tokenizer=False), tmp_path / "link", force=True)
    with pytest.raises(SaveError, match="parent directory does not exist"):
        core.convert(SOURCE, tmp_path / "no" / "such")
    assert_same_tensors(SOURCE, tmp_path / "models" / "a")


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(SaveError, match="not enough room") as caught:
        core.convert(SOURCE, tmp_path / "out")
    assert caught.value.found == "100,000 bytes free"
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000));"
        "from core.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-W", "error", "-c", code, "convert", str(SOURCE), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "model.safetensors: cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed_and_what_it_was_replacing_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-1").mkdir()
    (tmp_path / ".out.partial-1" / "model.safetensors").write_text("half")
    (tmp_path / ".other.partial-1").mkdir()
    core.convert(SOURCE, tmp_path / ".out.replaced-1")  # killed between its two renames
    with pytest.raises(SaveError, match="exists already"):
        core.convert(SOURCE, tmp_path / "out")
    core.convert(SOURCE, tmp_path / "out", force=True)
    assert_same_tensors(SOURCE, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.partial-1", "out"]


def test_two_runs_for_one_place_do_not_meet(tmp_path: Path) -> None:
    other = tmp_path / ".out.partial-1"
    other.mkdir()
    lock = os.open(other, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(SaveError, match="is being written by another process"):
            core.convert(SOURCE, tmp_path / "out")
    finally:
        os.close(lock)
    assert other.is_dir()


def test_a_failed_rename_puts_back_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core.convert(oracle("mixtral_swa8"), tmp_path / "out")
    rename: Callable[[Path, Path], Path] = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(SaveError, match="Input/output error"):
        core.convert(SOURCE, tmp_path / "out", force=True)
    assert_same_tensors(oracle("mixtral_swa8"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
