"""A conversion that is killed at any moment leaves no directory that looks finished, and the next run succeeds."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

import core
from core.errors import SaveError
from tests.fixtures import oracle
from tests.saving.compare import assert_same_tensors

ROOT = Path(__file__).resolve().parents[2]
SOURCE = oracle("mixtral_swa8")
OTHER = oracle("mistral_swa8")
KILLS = 10

# Says "started" when the first tensor is written, and waits before each step, so that a kill can fall between any two.
CHILD = """
import sys, time
from pathlib import Path
import core
from core.saving import destination, rename
from core.saving.writer import ShardWriter

if sys.argv[3] == "plain":  # as on a file system that cannot exchange names
    rename._call = lambda: None

def slowed(cls, name):
    original = getattr(cls, name)
    def step(*arguments, **options):
        print("step", flush=True)
        time.sleep(0.01)
        return original(*arguments, **options)
    setattr(cls, name, step)

for cls, name in ((ShardWriter, "write"), (ShardWriter, "finish"), (Path, "write_text"), (Path, "rename")):
    slowed(cls, name)
for name in ("exchange", "rename_new"):
    slowed(destination, name)
slowed(destination.shutil, "rmtree")
core.convert(sys.argv[1], sys.argv[2], max_shard_size=200_000, force=True)
"""


def test_kill_nine_at_ten_moments(tmp_path: Path) -> None:
    place = tmp_path / "out"
    core.convert(OTHER, place)  # what each run is asked to replace
    core.convert(OTHER, tmp_path / "rehearsal")
    total = _run(tmp_path / "rehearsal", None, "system")
    moments = random.Random(3)
    # The last steps are the renames and the removal: some kills fall there for certain.
    kills = [(moments.randrange(1, total), "system") for _ in range(KILLS - 6)]
    kills += [(total - 1, "system"), (total, "system")]
    # Without an exchange there are three renames, in steps of their own.
    kills += [(total + more, "plain") for more in range(4)]
    for step, how in kills:
        _run(place, step, how)
        if place.exists() and any(place.iterdir()):
            _assert_whole(place)
        else:  # killed between the two renames: what was there is aside, and nothing else is under the name
            assert how == "plain"
            assert list(tmp_path.glob(".out.replaced-*"))
    with pytest.raises(SaveError, match="exists already"):  # whatever the last kill did, the model is back
        core.convert(SOURCE, place)
    core.convert(SOURCE, place, force=True)
    assert_same_tensors(SOURCE, place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rehearsal"]


def _run(place: Path, kill_at: int | None, how: str) -> int:
    """Runs a conversion, kills it at that step of it, and returns the number of its steps."""
    command = [sys.executable, "-c", CHILD, str(SOURCE), str(place), how]
    count = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in child.stdout:
            count += 1
            if kill_at is not None and count >= kill_at:
                child.kill()
    assert kill_at is not None or child.returncode == 0
    return count


def _assert_whole(place: Path) -> None:
    model_type = core.plan(place).model_type
    core.load(place, tokenizer=False)
    assert_same_tensors(SOURCE if model_type == "mixtral" else OTHER, place)
