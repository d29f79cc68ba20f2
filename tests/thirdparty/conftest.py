"""An environment as a user has it: core installed from its wheel, and no checkout anywhere on the path."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.thirdparty.environments import ROOT, Environment, build_wheel


@pytest.fixture(scope="session")
def core_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("core-wheel"))


@pytest.fixture(scope="module")
def environment(core_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A fresh virtual environment with core in it, and nothing else of this project."""
    fresh = Environment.create(tmp_path_factory.mktemp("environment"))
    fresh.install(core_wheel)
    where = fresh.python("-c", "import core; print(core.__file__)").stdout.strip()
    assert Path(where).is_relative_to(fresh.directory)
    return fresh
