"""What the compiler may use at a level's flags is what the level asks of a processor: no less, and no more."""

from __future__ import annotations

import itertools
import os

import pytest

from core.cpu import processor
from core.cpu.compiler import CompilerError, find_compiler
from core.cpu.levels import LEVELS, Level, levels_of

# What gcc and clang define when they may use a set of instructions → its name in /proc/cpuinfo.
MACROS = {
    "x86_64": {
        "AMX_BF16": "amx_bf16",
        "AMX_FP16": "amx_fp16",
        "AMX_INT8": "amx_int8",
        "AMX_TILE": "amx_tile",
        "AVX": "avx",
        "AVX2": "avx2",
        "AVX512BF16": "avx512_bf16",
        "AVX512BW": "avx512bw",
        "AVX512CD": "avx512cd",
        "AVX512DQ": "avx512dq",
        "AVX512F": "avx512f",
        "AVX512FP16": "avx512_fp16",
        "AVX512IFMA": "avx512ifma",
        "AVX512VBMI": "avx512vbmi",
        "AVX512VBMI2": "avx512_vbmi2",
        "AVX512VL": "avx512vl",
        "AVX512VNNI": "avx512_vnni",
        "AVXVNNI": "avx_vnni",
        "BMI": "bmi1",
        "BMI2": "bmi2",
        "F16C": "f16c",
        "FMA": "fma",
        "LZCNT": "abm",
        "MOVBE": "movbe",
        "POPCNT": "popcnt",
        "SSE3": "pni",
        "SSE4_1": "sse4_1",
        "SSE4_2": "sse4_2",
        "SSSE3": "ssse3",
    },
    "aarch64": {
        "ARM_FEATURE_ATOMICS": "atomics",
        "ARM_FEATURE_BF16_VECTOR_ARITHMETIC": "bf16",
        "ARM_FEATURE_CRC32": "crc32",
        "ARM_FEATURE_DOTPROD": "asimddp",
        "ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "asimdhp",
        "ARM_FEATURE_MATMUL_INT8": "i8mm",
        "ARM_FEATURE_QRDMX": "asimdrdm",
        "ARM_FEATURE_SVE": "sve",
    },
}


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_flags_and_features_agree(level: Level) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CC"}
    if level.machine != processor.machine():
        environment["CC"] = f"{level.machine}-linux-gnu-gcc"
    try:
        compiler = find_compiler(environment)
    except CompilerError as error:
        pytest.skip(str(error))
    if not compiler.knows(level.flags):
        pytest.skip(f"{compiler.version} does not know it")
    defined = set(compiler.run([*level.flags, "-dM", "-E", "-x", "c", "/dev/null"]).split())
    macros = MACROS[level.machine]
    uses = {feature for macro, feature in macros.items() if {f"__{macro}__", f"__{macro}"} & defined}
    assert uses == level.features & {*macros.values()}


@pytest.mark.parametrize(("machine", "count"), [("x86_64", 4), ("aarch64", 3)])
def test_each_level_asks_for_more_than_the_one_before(machine: str, count: int) -> None:
    levels = levels_of(machine)
    assert len(levels) == count
    assert all(less.features < more.features for less, more in itertools.pairwise(levels))
