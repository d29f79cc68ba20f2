"""How the CPU library is compiled: what is compiled again, what is left out, and what a failure leaves behind."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.cpu import build as build_module
from core.cpu.build import Built, build
from core.cpu.compiler import Compiler, CompilerError, find_compiler
from core.cpu.elf import ElfError, read_library
from core.cpu.levels import LEVELS, Level
from core.cpu.manifest import SOURCE, read_manifest
from core.cpu.wheel_tag import platform_tag
from tests.cpu.conftest import write_source
from tests.registry.conftest import ROOT

# What the developer has set for builds is not what a test asks for.
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("CORELM_") and name != "CC"}
STRICT = PLAIN | {"CORELM_CPU_STRICT": "1"}


@pytest.fixture(autouse=True)
def compiler() -> Compiler:
    try:
        return find_compiler(PLAIN)
    except CompilerError as error:
        pytest.skip(str(error))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file's identity: a file that was replaced, even by an equal one, has another."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def said(built: Built) -> dict[str, str]:
    return dict(note.split(": ", 1) for note in built.notes)


def test_a_library_for_each_level_that_the_compiler_knows(tmp_path: Path, source: Path, compiler: Compiler) -> None:
    built = build(tmp_path / "lib", source=source, environment=STRICT)
    known = [level for level in LEVELS if level.machine == compiler.machine and compiler.knows(level.flags)]
    assert known
    assert built.machine == compiler.machine
    assert [path.name for path in built.libraries] == [f"libcorelm-{level.name}.so" for level in known]
    for path in built.libraries:
        assert read_library(path).machine == compiler.machine
    # Nothing unfinished stays behind.
    assert {*state(tmp_path / "lib")} == {"built.json", *(path.name for path in built.libraries)}


def test_only_what_changed_is_compiled_again(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "lib"
    first = build(folder, source=source, environment=PLAIN)
    before = state(folder)
    again = build(folder, source=source, environment=PLAIN)
    assert state(folder) == before
    assert {*said(again).values()} == {"unchanged"}
    assert again.libraries == first.libraries

    first.libraries[0].write_bytes(b"damaged")
    assert [*said(build(folder, source=source, environment=PLAIN)).values()].count("compiled") == 1
    assert read_library(first.libraries[0])

    for change in (source / "version.c", source / "new.h"):
        change.write_text((change.read_text() if change.exists() else "") + "\n")
        assert {*said(build(folder, source=source, environment=PLAIN)).values()} == {"compiled"}, change
    assert {*said(build(folder, source=source, environment=STRICT)).values()} == {"compiled"}, "other flags"


def test_a_level_that_the_compiler_does_not_know_is_left_out(
    tmp_path: Path, source: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lib"
    known = Level("plain", compiler.machine, (), frozenset())
    future = Level("future", compiler.machine, ("-mno-such-instructions",), frozenset())
    monkeypatch.setattr(build_module, "levels_of", lambda machine: (known, future))
    (folder).mkdir()
    (folder / future.file_name).write_text("left by another compiler")
    built = build(folder, source=source, environment=STRICT)
    assert built.libraries == (folder / known.file_name,)
    assert said(built)["future"].startswith("skipped: ")
    assert not (folder / future.file_name).exists()
    assert {*read_manifest(folder)} == {"plain"}


def test_only_the_best_level(tmp_path: Path, source: Path, compiler: Compiler, best_level: Level) -> None:
    """Other levels stay, as long as they are what would be compiled."""
    if not compiler.knows(best_level.flags):
        pytest.skip(f"{compiler.version} does not know {best_level.name}")
    folder, best = tmp_path / "lib", PLAIN | {"CORELM_CPU_LEVELS": "best"}
    assert build(folder, source=source, environment=best).libraries == (folder / best_level.file_name,)
    every = build(folder, source=source, environment=PLAIN).libraries
    assert build(folder, source=source, environment=best).libraries == every
    (source / "version.c").write_text((source / "version.c").read_text() + "\n")
    assert build(folder, source=source, environment=best).libraries == (folder / best_level.file_name,)
    assert {path.name for path in folder.glob("*.so")} == {best_level.file_name}
    wrong = PLAIN | {"CORELM_CPU_LEVELS": "all of them"}
    assert build(folder, source=source, environment=wrong).notes == (
        "CORELM_CPU_LEVELS is 'all of them'; 'best' or nothing was expected",
    )


def test_sources_that_do_not_compile(tmp_path: Path, source: Path) -> None:
    assert build(tmp_path / "lib", source=source, environment=PLAIN).libraries
    (source / "wrong.c").write_text("int wrong(void) { return nothing; }\n")
    built = build(tmp_path / "lib", source=source, environment=PLAIN)
    assert (built.machine, built.libraries) == (None, ())
    assert all("nothing" in note for note in built.notes)
    assert {*state(tmp_path / "lib")} <= {"built.json"}
    with pytest.raises(CompilerError, match="nothing"):
        build(tmp_path / "lib", source=source, environment=STRICT)


@pytest.mark.parametrize(
    "text",
    [
        "static int unused(void) { return 1; }\n",
        "int f(int unused);\nint f(int unused) { return 1; }\n",
        "int missing(void);\nint f(void);\nint f(void) { return missing(); }\n",
    ],
    ids=["all", "extra", "undefined"],
)
def test_strict_takes_no_warning_and_no_symbol_that_is_nowhere(tmp_path: Path, source: Path, text: str) -> None:
    (source / "more.c").write_text(text)
    with pytest.raises(CompilerError, match=r"unused|missing"):
        build(tmp_path / "lib", source=source, environment=STRICT)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"CORELM_NO_CPU_BUILD": "1"}, "CORELM_NO_CPU_BUILD is set"),
        ({"PATH": "/nowhere"}, "there is no C compiler"),
        ({"CC": "no-such-compiler -O2"}, "there is no C compiler no-such-compiler, which CC names"),
        ({"CC": "false"}, "false fails: exit code 1"),
    ],
)
def test_without_a_compiler_nothing_happens(
    tmp_path: Path, source: Path, environment: dict[str, str], why: str
) -> None:
    folder = tmp_path / "lib"
    build(folder, source=source, environment=PLAIN)
    before = state(folder)
    assert build(folder, source=source, environment=PLAIN | environment) == Built(None, (), (why,))
    assert state(folder) == before
    if "CORELM_NO_CPU_BUILD" not in environment:
        with pytest.raises(CompilerError, match=r"compiler|fails"):
            build(folder, source=source, environment=STRICT | environment)


@pytest.mark.parametrize(("platform", "word"), [("darwin", 2**63 - 1), ("linux", 2**31 - 1)])
def test_other_systems_are_left_alone(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, platform: str, word: int
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(sys, "maxsize", word)
    assert build(tmp_path / "lib", source=source, environment=STRICT).libraries == ()
    assert not (tmp_path / "lib").exists()


@pytest.mark.usefixtures("native")
def test_the_sources_of_this_project_compile_without_a_warning_and_have_the_version_that_python_wants(
    tmp_path: Path,
) -> None:
    """For the best level here; CI compiles all of them in this way."""
    from core.cpu.library import VERSION

    built = build(tmp_path, source=SOURCE, environment=STRICT | {"CORELM_CPU_LEVELS": "best"})
    assert [ctypes.CDLL(str(path)).corelm_version() for path in built.libraries] == [VERSION]


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "core.cpu.build", "--into", str(tmp_path)]
    best = PLAIN | {"CORELM_CPU_LEVELS": "best"}
    done = subprocess.run(command, cwd=ROOT, env=best, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count("CPU library: ") == done.stdout.count("\n") >= 1
    none = PLAIN | {"PATH": "/nowhere"}
    done = subprocess.run(command, cwd=ROOT, env=none, capture_output=True, text=True, check=True)
    assert done.stdout == "CPU library: there is no C compiler\n"
    done = subprocess.run(command, cwd=ROOT, env=none | {"CORELM_CPU_STRICT": "1"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: there is no C compiler\n")


def test_headers_say_what_a_library_needs(tmp_path: Path, compiler: Compiler) -> None:
    text = tmp_path / "uses.c"
    text.write_text("#include <math.h>\n#include <stdlib.h>\ndouble f(double x) { return exp(x) + atof(getenv(0)); }\n")
    path = tmp_path / "uses.so"
    compiler.run(["-shared", "-fPIC", "-o", path, text, "-lm"])
    library = read_library(path)
    assert library.machine == compiler.machine
    if "libc.so.6" not in library.needed:
        pytest.skip("the C library is not glibc")
    assert {*library.needed} == {"libc.so.6", "libm.so.6"}
    assert library.versions
    assert all(version.startswith("GLIBC_2.") for version in library.versions)
    newest = max(int(version.split(".")[1]) for version in library.versions)
    assert platform_tag([path], compiler.machine) == f"manylinux_2_{max(newest, 17)}_{compiler.machine}"


def test_a_library_that_needs_more_than_glibc_is_for_this_machine_alone(tmp_path: Path, compiler: Compiler) -> None:
    write_source(tmp_path)
    other, path = tmp_path / "libother.so", tmp_path / "uses.so"
    compiler.run(["-shared", "-fPIC", "-o", other, tmp_path / "version.c"])
    compiler.run(["-shared", "-fPIC", "-Wl,--no-as-needed", "-o", path, tmp_path / "version.c", other])
    assert platform_tag([path], compiler.machine) == f"linux_{compiler.machine}"


def test_headers_of_files_that_are_no_library(tmp_path: Path, source: Path) -> None:
    whole = build(tmp_path / "lib", source=source, environment=PLAIN).libraries[0].read_bytes()
    path = tmp_path / "file"
    for cut in (0, 10, 63, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ElfError):
            read_library(path)
    for other in (b"text" * 100, b"\x7fELF\x01\x01" + whole[6:], whole[:16] + b"\x02" + whole[17:]):
        path.write_bytes(other)
        with pytest.raises(ElfError):
            read_library(path)
