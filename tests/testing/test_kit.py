"""The kit as its users meet it: a test file of eight lines, run by pytest in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import core
from core.errors import UsageError
from core.testing import ArchitectureTests
from tests.testing import recurrent
from tests.testing.mutant import CHECKS, REFERENCES

ROOT = Path(__file__).parents[2]
AUTHOR = """
from pathlib import Path

from core.testing import ArchitectureTests

class TestMine(ArchitectureTests):
    reference = Path({reference!r})
    plugin = "{plugin}"
"""


def run(directory: Path, plugin: str) -> subprocess.CompletedProcess[str]:
    file = directory / "test_mine.py"
    file.write_text(AUTHOR.format(reference=str(REFERENCES["mistral"]), plugin=plugin))
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", "-q", "-rfs", str(file)]
    path = f"{ROOT}:{directory}"
    return subprocess.run(
        command, cwd=directory, env={"PYTHONPATH": path, "PATH": ""}, capture_output=True, text=True, timeout=100
    )


def test_eight_lines_are_many_named_checks(tmp_path: Path) -> None:
    done = run(tmp_path, "plugins.mistral")
    assert done.returncode == 0, done.stdout
    found = re.search(r"(\d+) passed, 1 skipped", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) == len(CHECKS) - 1 >= 15
    assert "the config has no experts" in done.stdout


def test_a_broken_plugin_fails_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from plugins.mistral import build_block, parse_config\n"
        "import core, plugins.mistral as mistral\n"
        "@core.hookimpl\n"
        "def weight_map(config, layout):\n"
        "    found = mistral.weight_map(config, layout)\n"
        "    if found is not None:\n"
        "        del found.rules['norm']\n"
        "    return found\n"
    )
    done = run(tmp_path, "broken")
    assert done.returncode == 1
    assert "TestMine::test_weight_map_is_a_bijection" in done.stdout
    assert "has no rule for the parameters ['norm.weight']" in done.stdout


def test_a_kit_without_a_config_says_so() -> None:
    class Empty(ArchitectureTests):
        pass

    with pytest.raises(UsageError, match="Empty sets neither config nor reference"):
        Empty().test_config_is_accepted()


def kit(config: object) -> ArchitectureTests:
    made: ArchitectureTests = type("Kit", (ArchitectureTests,), {"config": config})()
    return made


def test_a_config_may_be_a_path_or_a_dictionary() -> None:
    raw = kit(REFERENCES["mistral"]).raw
    assert raw == kit(dict(raw)).raw
    assert raw == kit(str(REFERENCES["mistral"] / "config.json")).raw


def test_a_layout_that_is_missing_is_named() -> None:
    class Wants(ArchitectureTests):
        config = REFERENCES["mistral"]
        layouts = ("hf", "mlx")

    with pytest.raises(AssertionError, match=r"has the layouts \('hf', 'mistral'\), expected \('hf', 'mlx'\)"):
        Wants().test_layouts()


def test_every_check_says_what_a_failure_means() -> None:
    for name in CHECKS:
        assert (getattr(ArchitectureTests, name).__doc__ or "").startswith("A failure means that"), name


def test_importing_core_imports_no_pytest() -> None:
    program = "import core, core.testing, sys; core.load; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert core.__version__


class TestRecurrent(ArchitectureTests):
    """A plugin of this process, without attention and without a reference."""

    config = recurrent.CONFIG
    plugin = recurrent.Recurrent()
