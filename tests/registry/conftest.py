"""Packages to install, and an interpreter that forgets them again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.registry import claim
from tests.registry import checkpoints
from tests.registry.wheels import Distribution
from tests.thirdparty.environments import build_wheel

ROOT = Path(__file__).resolve().parents[2]

Install = Callable[..., None]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No override, no block list, no registration; and modules that a test imported are gone after it."""
    for name in [name for name in os.environ if name.startswith("CORE_")]:
        monkeypatch.delenv(name)
    yield
    claim._registered.clear()
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs distributions for this process, each into a directory of its own, first ones first on the path."""

    def install_all(*distributions: Distribution) -> None:
        for distribution in reversed(distributions):
            monkeypatch.syspath_prepend(str(distribution.install(tmp_path / "sites" / distribution.name)))

    return install_all


@pytest.fixture
def third_party(tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint of a type that no built-in plugin claims."""
    return lambda model_type: checkpoints.third_party(tmp_path / "checkpoints" / model_type, model_type)


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.mistral(tmp_path_factory.mktemp("mistral") / "checkpoint")


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.mixtral(tmp_path_factory.mktemp("mixtral") / "checkpoint")


@pytest.fixture(scope="session")
def own_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own wheel, built once."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))
