"""Virtual environments without a network: wheels are built and installed here, and dependencies borrowed.

Dependencies come from the environment that runs the tests, through a ``.pth`` file behind the new one's own packages.
Such a file names a directory and no more: an editable installation of core that lies in it has no effect.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).resolve().parents[2]


def build_wheel(project: Path, directory: Path) -> Path:
    """Builds a project's wheel into a directory and returns its path."""
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(project)])
    (wheel,) = directory.glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    directory: Path

    @classmethod
    def create(cls, directory: Path) -> Environment:
        """A new one, in which this one's third-party packages can be imported."""
        venv.create(directory, symlinks=True)
        borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        created = cls(directory)
        (created._site / "borrowed.pth").write_text("\n".join(sorted(borrowed)))
        return created

    def install(self, *wheels: Path) -> None:
        """Installs wheels, asking nobody for anything else."""
        pip = ["-m", "pip", "--disable-pip-version-check", "--python", str(self._python), "install", "--quiet"]
        _run([sys.executable, *pip, "--no-index", "--no-deps", *map(str, wheels)])

    def python(self, *arguments: str | Path, cwd: Path | None = None, check: bool = True) -> Done:
        """Runs its interpreter, where warnings are errors, outside the checkout."""
        command = [str(self._python), "-P", "-W", "error", *map(str, arguments)]
        return _run(command, cwd=cwd or self.directory, check=check)

    def plugins(self) -> dict[str, dict[str, Any]]:
        """What ``core.inspect --plugins`` lists, by type, each imported."""
        listed = json.loads(self.python("-m", "core.inspect", "--plugins", "--import", "--json").stdout)
        return {claim["model_type"]: claim for claim in listed["claims"]}

    def run_tests(self, project: Path, directory: Path) -> int:
        """Runs a project's own tests, away from its sources, and returns how many passed."""
        shutil.copytree(project / "tests", directory / "tests")
        shutil.copy(project / "pyproject.toml", directory)
        done = self.python("-m", "pytest", "-p", "no:cacheprovider", "-q", cwd=directory)
        passed = re.search(r"(\d+) passed", done.stdout)
        assert passed is not None, done.stdout
        return int(passed[1])

    @property
    def _python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def _site(self) -> Path:
        return Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": str(self.directory)}))


def _run(command: list[str], cwd: Path | None = None, check: bool = True) -> Done:
    # What would configure Python, pip, pytest or core is this process's own affair.
    private = ("CORE_", "PYTHON", "PIP_", "PYTEST_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    done = subprocess.run(command, cwd=cwd, env=inherited, capture_output=True, text=True, check=False, timeout=300)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done
