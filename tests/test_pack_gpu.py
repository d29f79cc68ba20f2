"""``make test-gpu`` and ``.ci/pack_gpu.py``: what can be told of them without a GPU and without network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / ".ci")
    monkeypatch.delitem(sys.modules, "pack_gpu", raising=False)
    import pack_gpu

    return pack_gpu


def test_what_was_cut_is_joined_by_the_commands_that_are_printed(pack: ModuleType, tmp_path: Path) -> None:
    sizes = {"large-1-any.whl": 2500, "larger-1-any.whl": 3000, "small-1-any.whl": 400, "tiny-1-any.whl": 1}
    (tmp_path / "made").mkdir()
    wheels = [tmp_path / "made" / name for name in sizes]
    for wheel in wheels:
        wheel.write_bytes(bytes((i * 7 + sizes[wheel.name]) % 251 for i in range(sizes[wheel.name])))
    folders = pack.split(wheels, tmp_path, 1000)
    there = tmp_path / "there"
    there.mkdir()
    for folder in folders:
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 1000
        for file in folder.iterdir():
            file.rename(there / file.name)
    subprocess.run(["sh", "-ec", pack.JOIN.replace("WHEELS", str(there))], check=True, capture_output=True)
    assert {file.name: file.read_bytes() for file in there.iterdir()} == {
        wheel.name: wheel.read_bytes() for wheel in wheels
    }


def test_packages_have_a_version(pack: ModuleType) -> None:
    names = re.findall(r"^([\w.-]+)==", pack.CONSTRAINTS.read_text(), re.MULTILINE)
    assert set(pack.PACKAGES) <= {name.lower().replace("_", "-") for name in names}
    assert f"mlx=={pack.mlx_version()}" in pack.CONSTRAINTS.read_text().splitlines()


def test_folders_of_the_gpu_s_tests_are_there() -> None:
    found = re.search(r"^GPU_TESTS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    assert all(list((ROOT / "tests" / name).glob("test_*.py")) for name in found[1].split())
