"""The wheel, built from an sdist: with the CPU library where there is a compiler, and pure where there is none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hatchling.bridge.app import Application

from core.cpu import processor
from core.cpu.compiler import CompilerError, find_compiler
from core.cpu.hatch_hook import CpuLibraryHook
from core.cpu.levels import levels_of
from core.cpu.manifest import SOURCE, source_files
from tests.ci import only_in_ci
from tests.registry.conftest import ROOT
from tests.thirdparty.environments import Environment

pytestmark = only_in_ci

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("CORELM_", "PIP_")) and name != "CC"}
NO_COMPILER = {"PATH": "/nowhere"}


def make(kind: str, project: Path, into: Path, environment: dict[str, str]) -> tuple[Path, str]:
    """Builds ``wheel`` or ``sdist``; its file, and what was said."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(into), str(project)]
    done = subprocess.run(command, env=PLAIN | environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = into.iterdir()
    return file, done.stdout + done.stderr


def libraries(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if "/cpu/lib/" in name or name.endswith(".so")}


def tag(wheel: Path) -> tuple[str, str]:
    """The tag inside the wheel, which is also that of its name, and whether its files go where pure ones do."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        text = archive.read(name).decode()
    found, pure = (
        re.search(r"^Tag: (.+)$", text, re.MULTILINE),
        re.search(r"^Root-Is-Purelib: (.+)$", text, re.MULTILINE),
    )
    assert found is not None
    assert pure is not None
    assert wheel.name.endswith(f"-{found[1]}.whl")
    return found[1], pure[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the sdist holds, unpacked."""
    directory = tmp_path_factory.mktemp("sdist")
    sdist, _ = make("sdist", ROOT, directory / "file", PLAIN)
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    (unpacked,) = directory.glob("corelm-*")
    return unpacked


@pytest.fixture
def levels() -> list[str]:
    """Names of the levels that the compiler makes."""
    try:
        compiler = find_compiler(PLAIN)
    except CompilerError as error:
        pytest.skip(str(error))
    found = [level.name for level in levels_of(compiler.machine) if compiler.knows(level.flags)]
    if not found:
        pytest.skip(f"the CPU library has no level that {compiler.version} makes for {compiler.machine}")
    return found


def test_the_sdist_carries_the_sources_and_no_library(project: Path) -> None:
    wanted = {file.name for file in source_files(SOURCE)}
    assert wanted
    assert wanted <= {file.name for file in (project / "core" / "cpu" / "source").iterdir()}
    assert (project / "core" / "cpu" / "hatch_hook.py").is_file()
    assert not (project / "core" / "cpu" / "lib").exists()


def test_a_wheel_with_libraries_installs_and_loads_them(project: Path, levels: list[str], tmp_path: Path) -> None:
    usable = [one.name for one in levels_of(processor.machine()) if one.features <= processor.features()]
    wheel, said = make("wheel", project, tmp_path / "wheel", {"CORELM_CPU_LEVELS": "best"})
    for level in usable[-1:]:
        assert re.search(rf"^CPU library: {re.escape(level)}: (compiled|unchanged)$", said, re.MULTILINE)
    assert libraries(wheel) == {f"core/cpu/lib/libcorelm-{level}.so" for level in usable[-1:]}
    platform, pure = tag(wheel)
    assert re.fullmatch(rf"py3-none-(manylinux_2_\d+|linux)_{processor.machine()}", platform)
    assert pure == "false"
    with zipfile.ZipFile(wheel) as archive:
        of_cpu = {Path(name).name for name in archive.namelist() if name.startswith("core/cpu/")}
    assert "library.py" in of_cpu
    assert not of_cpu & {"build.py", "hatch_hook.py", *(file.name for file in source_files(SOURCE))}

    environment = Environment.create(tmp_path / "environment")
    environment.install(wheel)
    code = "from core.cpu.library import library_status as s; print(s().level, s().path, s().problems)"
    level, path, problems = environment.python("-c", code).stdout.split(" ", 2)
    assert level == ["None", *(name for name in levels if name in usable)][-1]
    assert problems.strip() == "()"
    assert level == "None" or Path(path).is_relative_to(environment.directory)


def test_the_wheel_carries_the_sources_of_gpu_kernels(project: Path, tmp_path: Path) -> None:
    wheel, _ = make("wheel", project, tmp_path, NO_COMPILER)
    wanted = {
        str(file.relative_to(ROOT)) for room in ("kernels", "fast") for file in (ROOT / "core" / room).rglob("*.*")
    }
    wanted = {name for name in wanted if name.endswith((".cu", ".cuh", ".metal"))}
    assert wanted
    with zipfile.ZipFile(wheel) as archive:
        assert wanted <= {*archive.namelist()}


@pytest.mark.parametrize("environment", [NO_COMPILER, {"CORELM_NO_CPU_BUILD": "1"}, {"CC": "false"}])
def test_without_a_compiler_the_wheel_is_pure(project: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    left = project / "core" / "cpu" / "lib"
    left.mkdir(exist_ok=True)
    (left / "libcorelm-x86-64-v3.so").write_text("left by a build before")
    wheel, said = make("wheel", project, tmp_path, environment)
    assert tag(wheel) == ("py3-none-any", "true")
    assert libraries(wheel) == set()
    assert "CPU library: not built. Everything works without it, and slower on a CPU." in said


def test_an_editable_installation_has_its_libraries_in_the_checkout(
    project: Path, levels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project / "core" / "cpu" / "lib"
    for file in folder.glob("*"):
        file.unlink()
    # All that hatchling does for such an installation but the wheel itself, for which it needs another package.
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel:editable", "--hooks-only"]
    best = {"CORELM_CPU_LEVELS": "best"}
    subprocess.run(command, cwd=project, env=PLAIN | best, capture_output=True, check=True)
    usable = [one.name for one in levels_of(processor.machine()) if one.features <= processor.features()]
    assert {file.name for file in folder.glob("*.so")} == {f"libcorelm-{level}.so" for level in usable[-1:]}

    for name in ("CC", "CORELM_NO_CPU_BUILD", "CORELM_CPU_STRICT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CORELM_CPU_LEVELS", "best")
    data: dict[str, Any] = {"pure_python": True, "force_include": {}}
    hook = CpuLibraryHook(str(project), {}, None, None, str(tmp_path), "wheel", Application())  # type: ignore[arg-type]
    hook.initialize("editable", data)
    assert data == {"pure_python": True, "force_include": {}}, "what lies in the checkout is in no wheel"
    hook.initialize("standard", data)
    assert len(data["force_include"]) == 1
