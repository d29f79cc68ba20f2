"""Which library a process uses: by what its processor can do, by ``CORE_CPU``, and none that is damaged or stale."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.cpu import library, processor
from core.cpu.build import build
from core.cpu.levels import LEVELS, Level, levels_of
from core.cpu.library import library_status, load_library
from core.errors import UsageError
from tests.cpu.conftest import write_source

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("CORELM_") and name != "CC"}
FEATURES = {level.name: level.features for level in LEVELS}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was chosen before is not what the test is about, and what it chooses is nobody's after it."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    library._chosen.cache_clear()
    yield
    library._chosen.cache_clear()


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with these features, where these levels are built; their files are not really loaded."""

    def make(machine: str, features: frozenset[str], built: list[str]) -> None:
        monkeypatch.setattr(processor, "machine", lambda: machine)
        monkeypatch.setattr(processor, "features", lambda: features)
        monkeypatch.setattr(library, "FOLDER", tmp_path)
        monkeypatch.setattr(library, "SOURCE", tmp_path / "none")
        monkeypatch.setattr(library, "read_library", lambda path: SimpleNamespace(machine=machine))
        loaded = SimpleNamespace(corelm_version=lambda: library.VERSION, corelm_threads=lambda count: None)
        monkeypatch.setattr(library.ctypes, "CDLL", lambda path: loaded)
        for level in LEVELS:
            if level.name in built:
                (tmp_path / level.file_name).touch()

    return make


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: Level) -> Path:
    """The file of the one level of a folder where core looks for libraries, built from sources that are there."""
    source = write_source(tmp_path / "source")
    monkeypatch.setattr(library, "FOLDER", tmp_path / "lib")
    monkeypatch.setattr(library, "SOURCE", source)
    monkeypatch.setattr(library, "levels_of", lambda machine: (native,))
    if not build(tmp_path / "lib", source=source, environment=PLAIN).libraries:
        pytest.skip("there is no C compiler")
    return tmp_path / "lib" / native.file_name


X86 = ["amx", "avx512-bf16", "x86-64-v4", "x86-64-v3"]  # the best first


@pytest.mark.parametrize(
    ("machine", "features", "built", "level", "passed_over"),
    [
        ("x86_64", FEATURES["amx"] | {"more"}, ["x86-64-v3", "x86-64-v4", "amx"], "amx", []),
        (
            "x86_64",
            FEATURES["amx"] - {"amx_int8"},
            ["x86-64-v3", "x86-64-v4", "amx"],
            "x86-64-v4",
            ["amx", "avx512-bf16"],
        ),
        ("x86_64", FEATURES["amx"], ["x86-64-v3"], "x86-64-v3", X86[:3]),
        ("x86_64", FEATURES["x86-64-v3"], ["x86-64-v3", "amx"], "x86-64-v3", X86[:3]),
        (
            "x86_64",
            FEATURES["x86-64-v4"] - {"fma"},
            ["x86-64-v3"],
            None,
            ["amx", "avx512-bf16", "x86-64-v4", "x86-64-v3"],
        ),
        ("x86_64", frozenset(), ["x86-64-v3"], None, X86),
        ("aarch64", FEATURES["armv8.6"], ["armv8", "armv8.2", "armv8.6"], "armv8.6", []),
        ("aarch64", FEATURES["armv8.6"] - {"bf16"}, ["armv8", "armv8.2", "armv8.6"], "armv8.2", ["armv8.6"]),
        ("aarch64", FEATURES["armv8"], ["armv8", "armv8.2", "armv8.6"], "armv8", ["armv8.6", "armv8.2"]),
        ("aarch64", FEATURES["armv8.6"], [], None, []),
        ("riscv64", FEATURES["armv8.6"], ["armv8"], None, []),
        ("", FEATURES["amx"], ["amx"], None, []),
    ],
)
def test_the_best_level_that_the_processor_runs(
    made_up: Callable[..., None],
    machine: str,
    features: frozenset[str],
    built: list[str],
    level: str | None,
    passed_over: list[str],
) -> None:
    made_up(machine, features, built)
    status = library_status()
    assert status.level == level
    assert [one.level for one in status.passed_over] == passed_over
    assert (load_library() is None) == (level is None)
    assert (status.path is None) == (level is None)
    assert status.problems == (), "nothing of this is a fault of the installation"
    assert str(status).startswith(f"{level} (" if level else "none")


def test_why_not_a_better_one(made_up: Callable[..., None], tmp_path: Path) -> None:
    made_up("x86_64", FEATURES["x86-64-v4"], ["x86-64-v3"])
    assert str(library_status()) == (
        f"x86-64-v3 ({tmp_path}/libcorelm-x86-64-v3.so); "
        "not amx: this processor has no amx_bf16, amx_int8, amx_tile, …; "
        "not avx512-bf16: this processor has no avx512_bf16, avx512_vnni; "
        "not x86-64-v4: libcorelm-x86-64-v4.so was not built"
    )


def test_an_installation_without_libraries_says_how_to_get_them(
    made_up: Callable[..., None], monkeypatch: pytest.MonkeyPatch, source: Path
) -> None:
    made_up("aarch64", FEATURES["armv8"], [])
    assert str(library_status()) == (
        "none: it was not built; with a C compiler, pip install --no-binary corelm corelm does"
    )
    library._chosen.cache_clear()
    monkeypatch.setattr(library, "SOURCE", source)
    assert str(library_status()) == "none: it was not built; with a C compiler, python -m core.cpu.build does"


@pytest.mark.parametrize(
    ("value", "level"), [("", "x86-64-v4"), ("auto", "x86-64-v4"), ("off", None), ("x86-64-v3", "x86-64-v3")]
)
def test_what_core_cpu_chooses(
    made_up: Callable[..., None], monkeypatch: pytest.MonkeyPatch, value: str, level: str | None
) -> None:
    made_up("x86_64", FEATURES["x86-64-v4"], ["x86-64-v3", "x86-64-v4"])
    monkeypatch.setenv("CORE_CPU", value)
    assert library_status().level == level
    assert (load_library() is None) == (level is None)
    assert str(library_status()) == "none: CORE_CPU=off" or level


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("avx", "found 'avx')"),
        ("OFF", "found 'OFF')"),
        ("armv8", "found 'armv8')"),
        ("amx", "found 'amx': this processor has no amx_bf16, amx_int8, amx_tile, …)"),
        ("x86-64-v4", "found 'x86-64-v4': libcorelm-x86-64-v4.so was not built)"),
    ],
)
def test_a_value_of_core_cpu_that_cannot_be(
    made_up: Callable[..., None], monkeypatch: pytest.MonkeyPatch, value: str, found: str
) -> None:
    made_up("x86_64", FEATURES["x86-64-v4"], ["x86-64-v3", "amx"])
    monkeypatch.setenv("CORE_CPU", value)
    for ask in (load_library, library_status, load_library):
        with pytest.raises(UsageError) as caught:
            ask()
        assert (
            f"variable CORE_CPU names no CPU library that can be used here (expected auto, off, x86-64-v3, {found}"
            in (str(caught.value))
        )


def test_a_library_that_fits_is_loaded_once(compiled: Path) -> None:
    loaded = load_library()
    assert loaded is not None
    assert loaded.corelm_version() == library.VERSION
    assert load_library() is loaded
    assert library_status().path == compiled
    assert library_status().passed_over == ()


def test_a_library_of_another_version_is_not_used(compiled: Path) -> None:
    source = write_source(library.SOURCE, library.VERSION + 1)
    build(compiled.parent, source=source, environment=PLAIN)
    assert load_library() is None
    (problem,) = library_status().problems
    assert f"has version {library.VERSION + 1}, and this core needs {library.VERSION}" in problem


@pytest.mark.parametrize("gone", ["source", "manifest"])
def test_a_library_older_than_its_sources_is_not_used(compiled: Path, gone: str) -> None:
    if gone == "source":
        (library.SOURCE / "version.c").write_text((library.SOURCE / "version.c").read_text() + "\n")
    else:
        (compiled.parent / "built.json").write_text("[1]")
    assert load_library() is None
    (problem,) = library_status().problems
    assert problem.endswith(f"{compiled} is older than its sources: run python -m core.cpu.build")
    build(compiled.parent, source=library.SOURCE, environment=PLAIN)
    library._chosen.cache_clear()
    assert library_status().problems == ()
    assert load_library() is not None


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: data[: len(data) - 1], r"is damaged: it is cut off: [\d,]+ of [\d,]+ bytes"),
        (lambda data: data[:4096], r"is damaged: it is cut off"),
        (lambda data: b"", "is damaged: it is no 64-bit ELF file"),
        (lambda data: b"not a library", "is damaged: it is no 64-bit ELF file"),
        (lambda data: data.replace(b"corelm_version", b"corelm_vers1on"), "cannot be loaded: .*corelm_version"),
    ],
    ids=["byte", "page", "empty", "text", "symbol"],
)
def test_a_damaged_library_is_not_used(compiled: Path, damage: Callable[[bytes], bytes], why: str) -> None:
    data = compiled.read_bytes()
    compiled.unlink()  # another file: what this process has mapped stays whole
    compiled.write_bytes(damage(data))
    assert load_library() is None
    status = library_status()
    (problem,) = status.problems
    assert re.search(rf"{re.escape(str(compiled))} {why}", problem)
    assert str(status).startswith("none; not ")


def test_a_library_of_another_machine_is_not_loaded(compiled: Path) -> None:
    data = bytearray(compiled.read_bytes())
    other = {62: (183, "aarch64"), 183: (62, "x86_64")}[data[18]]
    data[18] = other[0]
    compiled.unlink()
    compiled.write_bytes(data)
    assert library_status().problems[0].endswith(f"{compiled} is for {other[1]}")


def test_flags_of_x86_are_those_that_all_processors_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx avx2 fma\nvmx flags\t: vnmi\n\nflags\t\t: fpu avx avx2\n")
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    assert processor.features() == {"fpu", "avx", "avx2"}
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    assert processor.features() == frozenset()


@pytest.mark.parametrize(
    ("hwcap", "hwcap2", "level"),
    [
        (0x0000_00FF, 0x0, "armv8"),  # Cortex-A53
        (0x0010_1FFF, 0x0, "armv8.2"),  # dot products and half precision
        (0x0010_1FFF, 0x2000, "armv8.2"),
        (0x0010_1FFF, 0x6000, "armv8.6"),
        (0x0010_1FFF & ~(1 << 10), 0x6000, "armv8"),  # no half precision
    ],
)
def test_bits_of_arm(monkeypatch: pytest.MonkeyPatch, hwcap: int, hwcap2: int, level: str) -> None:
    monkeypatch.setattr(processor, "machine", lambda: "aarch64")
    monkeypatch.setattr(processor, "_auxiliary", {16: hwcap, 26: hwcap2}.__getitem__)
    usable = [one.name for one in levels_of("aarch64") if one.features <= processor.features()]
    assert usable[-1] == level


def test_this_processor_says_what_it_can() -> None:
    assert processor.machine() == "" or processor._auxiliary(16) > 0
    if processor.machine() in {"x86_64", "aarch64"}:
        assert processor.features() & {"sse4_2", "asimd"}


def test_doctor_says_it(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.cli.doctor import _cpu_library

    problems: list[str] = []
    assert str(compiled) in _cpu_library(problems)
    assert problems == []
    (library.SOURCE / "version.c").unlink()
    write_source(library.SOURCE, library.VERSION + 7)
    library._chosen.cache_clear()
    assert _cpu_library(problems).startswith("none; not ")
    monkeypatch.setenv("CORE_CPU", "fast")
    assert _cpu_library(problems) == "none"
    assert [problem.partition(":")[0].split()[:3] for problem in problems] == [
        ["the", "CPU", "library"],
        ["the", "environment", "variable"],
    ]
