"""The README tells the truth: its commands run, their output is what it shows, its figures are computed.

An ellipsis in shown output stands for what differs between machines (paths, device names, memory).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import core
from tests.ci import only_in_ci
from tests.readme.memory import memory_table

ROOT = Path(core.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"```console\n\$ (.*)\n([\s\S]*?)```", README)
PYTHON = re.findall(r"```python\n([\s\S]*?)```", README)
on_cpu = pytest.mark.skipif(
    mx.default_device().type != mx.DeviceType.cpu, reason="the output shown is that of a CPU, in float32"
)
# What any of these imports would mean a network call, or a dependency that the project must not have.
_NO_NETWORK = """
import socket, sys
def refuse(*arguments, **keywords): raise OSError("the network is blocked")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
from core.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CORE_", "PYTHON", "MAKE"))}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)  # type: ignore[call-overload]


def test_the_readme_shows_something() -> None:
    assert len(CONSOLE) >= 2
    assert len(PYTHON) >= 2


@on_cpu
@pytest.mark.parametrize(("command", "shown"), CONSOLE, ids=[command for command, _ in CONSOLE])
def test_shown_output_is_what_the_command_prints(command: str, shown: str) -> None:
    words, typed = shlex.split(command), None
    if words[0] == "printf":  # printf '%s\n' LINE… | corelm …
        pipe = words.index("|")
        assert words[1] == r"%s\n"
        typed, words = "".join(f"{line}\n" for line in words[2:pipe]), words[pipe + 1 :]
    program, *arguments = words
    assert program == "corelm"
    # Once more with the network blocked: the demos need none.
    result = run([sys.executable, "-c", _NO_NETWORK, *arguments], input=typed)
    assert result.returncode == 0, result.stderr
    pattern = ".*".join(re.escape(part) for part in shown.rstrip().split("…"))
    assert re.fullmatch(pattern, result.stdout.rstrip()), result.stdout
    larger = re.sub(r" of [\d.]+ [MGT]iB,", " of 1.50 TiB,", result.stdout.rstrip())  # on a machine with more memory
    assert re.fullmatch(pattern, larger), larger


def test_the_python_examples_run() -> None:
    """The first blocks are one session; what follows are pieces of a plugin."""
    result = run([sys.executable, "-W", "error", "-c", "\n".join(PYTHON[:2])])
    assert result.returncode == 0, result.stderr
    assert len(result.stdout) > 80


def test_memory_figures_are_those_of_the_plan(tmp_path: Path) -> None:
    shown = [line for line in README.splitlines() if line.startswith(("| Mistral-", "| Mixtral "))]
    assert shown == memory_table(tmp_path)


def test_every_name_in_the_tables_exists() -> None:
    for name in re.findall(r"`core\.([a-z_]+)", README):
        assert hasattr(core, name) or (ROOT / "core" / name).exists() or (ROOT / "core" / f"{name}.py").exists(), name


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_two_commands_are_make_targets() -> None:
    assert re.search(r"^make demo\b", README, re.MULTILINE)
    assert re.search(r"^make test\b", README, re.MULTILINE)
    planned = run(["make", "--dry-run", "--always-make", "test"], cwd=ROOT)
    assert planned.returncode == 0, planned.stderr
    assert "-m pytest" in planned.stdout


@only_in_ci
@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository, to clone it")
def test_make_demo_in_a_fresh_clone(tmp_path: Path) -> None:
    """As a newcomer: clone, one command. `make test` is what runs this, so it is not run again inside itself."""
    clone = tmp_path / "clone"
    cloned = run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)])
    assert cloned.returncode == 0, cloned.stderr
    result = run(["make", "demo"], cwd=clone)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(result.stdout.splitlines()[-1]) > 0
    again = run([str(clone / ".venv/bin/python"), "-c", _NO_NETWORK, "generate", "To be", "--model", "demo:mixtral"])
    assert again.returncode == 0, again.stderr
    assert len(again.stdout) > 100
