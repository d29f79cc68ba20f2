"""The instruction levels that the CPU library is compiled for: the compiler's flags, and what a processor must have.

Features have the names of Linux's ``/proc/cpuinfo``. The table is all that building and loading share about a level.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """One build of the library.

    Attributes:
        name: as in the file's name and in ``CORE_CPU``.
        machine: as ``platform.machine()`` says it on Linux.
        flags: what the compiler is told.
        features: what the processor must have; these are all that the compiler may use at these flags.
    """

    name: str
    machine: str
    flags: tuple[str, ...]
    features: frozenset[str]

    @property
    def file_name(self) -> str:
        return f"libcorelm-{self.name}.so"


_V2 = frozenset(["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"])
_V3 = _V2 | frozenset(["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"])
_V4 = _V3 | frozenset(["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"])
_BF16 = _V4 | frozenset(["avx512_bf16", "avx512_vnni"])
_AMX = _BF16 | frozenset(["amx_bf16", "amx_int8", "amx_tile"])
_ARM = frozenset({"asimd"})
_ARM_2 = _ARM | frozenset(["asimddp", "asimdhp", "asimdrdm", "atomics", "crc32", "fphp"])
_ARM_6 = _ARM_2 | frozenset({"bf16", "i8mm"})
_BF16_FLAGS = ("-mavx512bf16", "-mavx512vnni")
_AMX_FLAGS = (*_BF16_FLAGS, "-mamx-tile", "-mamx-bf16", "-mamx-int8")

# ``armv8.6`` is ARMv8.2 with the two extensions, not all of ARMv8.6: Neoverse V1 has these two and not the rest.
LEVELS = (
    Level("x86-64-v3", "x86_64", ("-march=x86-64-v3",), _V3),
    Level("x86-64-v4", "x86_64", ("-march=x86-64-v4",), _V4),
    Level("avx512-bf16", "x86_64", ("-march=x86-64-v4", *_BF16_FLAGS), _BF16),
    Level("amx", "x86_64", ("-march=x86-64-v4", *_AMX_FLAGS), _AMX),
    Level("armv8", "aarch64", ("-march=armv8-a",), _ARM),
    Level("armv8.2", "aarch64", ("-march=armv8.2-a+dotprod+fp16",), _ARM_2),
    Level("armv8.6", "aarch64", ("-march=armv8.2-a+dotprod+fp16+bf16+i8mm",), _ARM_6),
)
"""All levels; those of one machine go from the least to the most that they ask of it."""


def levels_of(machine: str) -> tuple[Level, ...]:
    """The levels of a machine, the best last; none where the library has none for it."""
    return tuple(level for level in LEVELS if level.machine == machine)
