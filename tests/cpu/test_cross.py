"""The CPU library for 64-bit ARM, compiled by a cross compiler and run by an emulator of several processors.

Debian has both: ``apt-get install gcc-aarch64-linux-gnu qemu-user``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from core.cpu.build import Built, build
from core.cpu.compiler import find_compiler
from core.cpu.elf import read_library
from core.cpu.levels import LEVELS, Level, levels_of
from core.cpu.library import VERSION
from core.cpu.manifest import SOURCE
from core.cpu.processor import arm_features
from core.cpu.wheel_tag import platform_tag
from tests.ci import only_in_ci
from tests.cpu.conftest import write_source

pytestmark = only_in_ci

CROSS = "aarch64-linux-gnu-gcc"
ROOT_OF_ARM = "/usr/aarch64-linux-gnu"
PRODUCTS = ("unpack", "few_rows", "integer_rows", "many_rows", "block", "amx", "multiply", "pool")
CALLER = """
#include <dlfcn.h>
#include <stdio.h>
#include <sys/auxv.h>

int main(int count, char **arguments) {
  printf("%lu %lu", getauxval(AT_HWCAP), getauxval(AT_HWCAP2));
  for (int i = 1; i < count; i++) {
    void *library = dlopen(arguments[i], RTLD_NOW);
    int (*version)(void) = library ? (int (*)(void))dlsym(library, "corelm_version") : 0;
    printf(" %d", version ? version() : -1);
  }
  return 0;
}
"""
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CORELM_")} | {
    "CC": CROSS,
    "CORELM_CPU_STRICT": "1",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if shutil.which(CROSS) is None:
        pytest.skip(f"{CROSS} is not installed")
    return build(tmp_path_factory.mktemp("arm"), environment=ENVIRONMENT)


def run(cpu: str, caller: Path, *libraries: Path) -> list[int]:
    """What the caller prints on a processor: its two words of features, then the libraries' versions."""
    command = ["qemu-aarch64", "-L", ROOT_OF_ARM, "-cpu", cpu, *map(str, (caller, *libraries))]
    return [int(word) for word in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def test_it_compiles_for_all_levels_without_a_warning(built: Built) -> None:
    names = [level.name for level in LEVELS if level.machine == "aarch64"]
    assert [path.name for path in built.libraries] == [f"libcorelm-{name}.so" for name in names]
    assert {read_library(path).machine for path in built.libraries} == {"aarch64"}
    tag = platform_tag(built.libraries, "aarch64")
    assert tag.startswith("manylinux_2_")
    assert tag.endswith("_aarch64")


def test_what_is_built_for_this_machine_stays(tmp_path: Path) -> None:
    if shutil.which(CROSS) is None:
        pytest.skip(f"{CROSS} is not installed")
    plain = {name: value for name, value in ENVIRONMENT.items() if name != "CC"}
    source, folder = write_source(tmp_path / "source"), tmp_path / "lib"
    native = build(folder, source=source, environment=plain)
    cross = build(folder, source=source, environment=ENVIRONMENT)
    assert {path.name for path in folder.glob("*.so")} == {path.name for path in native.libraries + cross.libraries}
    again = build(folder, source=source, environment=plain)
    assert {note.split(": ")[1] for note in again.notes} == {"unchanged"}
    assert again.libraries == native.libraries


@pytest.mark.parametrize(("cpu", "level"), [("cortex-a53", "armv8"), ("neoverse-n1", "armv8.2"), ("max", "armv8.6")])
def test_each_processor_runs_the_levels_that_its_features_allow(
    built: Built, tmp_path: Path, cpu: str, level: str
) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    caller = tmp_path / "caller"
    (tmp_path / "caller.c").write_text(CALLER)
    find_compiler(ENVIRONMENT).run(["-o", caller, tmp_path / "caller.c", "-ldl"])
    hwcap, hwcap2 = run(cpu, caller)
    features = arm_features(hwcap, hwcap2)
    usable = [one.name for one in levels_of("aarch64") if one.features <= features]
    assert usable[-1] == level
    assert run(cpu, caller, *built.libraries[: len(usable)])[2:] == [VERSION] * len(usable)


# The sources have nothing that the second level does and the third does not.
@pytest.mark.parametrize("level", levels_of("aarch64")[::2], ids=lambda level: level.name)
def test_products_are_right_on_an_emulated_processor(tmp_path: Path, level: Level) -> None:
    for program in (CROSS, "qemu-aarch64"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    sources = [str(SOURCE / f"{name}.c") for name in PRODUCTS]
    caller = tmp_path / "products"
    command = [CROSS, "-O3", "-std=gnu11", *level.flags, f"-I{SOURCE}", "-pthread", "-o", str(caller)]
    subprocess.run([*command, str(Path(__file__).with_name("products.c")), *sources, "-lm"], check=True)
    emulated = ["qemu-aarch64", "-L", ROOT_OF_ARM, "-cpu", "max", str(caller), "5"]  # one in five: it is slow
    tried, *worst = map(float, subprocess.run(emulated, capture_output=True, text=True, check=True).stdout.split())
    assert tried == -(-2 * 3 * 22 * 7 * 3 // 5)
    assert worst[0] < 5e-6
    assert max(worst) < 3e-4, "there are no tiles on ARM: many rows are multiplied in float32"
