"""Sources and folders for libraries that tests compile themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.cpu import library, processor
from core.cpu.levels import Level, levels_of

SOURCE = """
__attribute__((visibility("default"))) int corelm_version(void);
int corelm_version(void) {{ return {version}; }}
__attribute__((visibility("default"))) void corelm_threads(int count);
void corelm_threads(int count) {{ (void)count; }}
"""


def write_source(folder: Path, version: int = library.VERSION) -> Path:
    """A folder with one C file, whose library says that it has this version."""
    folder.mkdir(exist_ok=True)
    (folder / "version.c").write_text(SOURCE.format(version=version))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


@pytest.fixture
def native() -> Level:
    """The least level for this machine; a test that needs it is skipped where there is none, or no processor for it."""
    levels = levels_of(processor.machine())
    if not levels or levels[0].features - processor.features():
        pytest.skip("the CPU library has no level for this machine")
    return levels[0]


@pytest.fixture
def best_level(native: Level) -> Level:
    """The best level for this processor, whatever the compiler knows."""
    return [level for level in levels_of(native.machine) if level.features <= processor.features()][-1]


@pytest.fixture
def best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are computed by the best library."""
    monkeypatch.delenv("CORE_CPU", raising=False)
    if library.load_library() is None:
        pytest.skip("there is no CPU library here")
