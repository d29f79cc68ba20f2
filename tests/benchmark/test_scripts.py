"""Every script of ``benchmarks`` runs to its end on something tiny; its figures are not looked at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import STORIES

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks"
# Arguments of each script, and the beginning of a line that says a figure. CONFIG, FULL and WORK stand for paths.
RUNS = {
    "batch.py": [
        (
            "--config CONFIG --bits 16 --requests 2 --prompt 4 --ragged --generate 3 --repeats 1 --solo",
            "core: output tok",
        ),
        ("--config CONFIG --bits 4 --requests 2 --prompt 4 --join 8 --before 2 --generate 30 --repeats 1", "core: "),
    ],
    "cold.py": [
        ("--config CONFIG --layers 2 --bits 4 --runs 1 --batch 2 --steps 40 --folder WORK/cold", "  core    first")
    ],
    "convert.py": [("--layers 1 --repeats 1 --divisor 16 --directory WORK", "  core ")],
    "discovery.py": [("--distributions 2 --repeats 1", "added: ")],
    "imports.py": [("--repeats 1", "core, used ")],
    "load.py": [("--layers 1 --bits 4 --repeats 1 --divisor 32 --directory WORK", "  core ")],
    "quantization.py": [("FULL --against-full --context 8 --max-tokens 8", "| nvfp4 |")],
    "step.py": [
        ("--config CONFIG --bits 4 --contexts 3 20 --tokens 2 --repeats 1", "context 20: "),
        ("--config CONFIG --bits 16 --contexts 3 --tokens 2 --repeats 1 --ordinary", "context 3: "),
    ],
}


def test_every_script_is_run() -> None:
    assert {path.name for path in SCRIPTS.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize(
    ("script", "arguments", "figure"),
    [pytest.param(script, *run, id=f"{script}-{i}") for script, runs in RUNS.items() for i, run in enumerate(runs)],
)
def test_runs(script: str, arguments: str, figure: str, config: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "stories").symlink_to(STORIES)
    paths = {"CONFIG": str(config), "FULL": str(full), "WORK": str(tmp_path)}
    command = [
        sys.executable,
        str(SCRIPTS / script),
        *(re.sub("CONFIG|FULL|WORK", lambda name: paths[name.group()], word) for word in arguments.split()),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith(figure) for line in done.stdout.splitlines()), done.stdout
