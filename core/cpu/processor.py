"""What this processor can do, as Linux says it: names of instruction sets, without running any of them."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_AT_HWCAP, _AT_HWCAP2 = 16, 26
# Bits of Linux's asm/hwcap.h for arm64, under the names that /proc/cpuinfo gives them.
_HWCAP = {"asimd": 1, "crc32": 7, "atomics": 8, "fphp": 9, "asimdhp": 10, "asimdrdm": 12, "asimddp": 20}
_HWCAP2 = {"i8mm": 13, "bf16": 14}


def machine() -> str:
    """What kind of processor this is, such as ``x86_64``; empty on other systems than 64-bit Linux."""
    return platform.machine() if sys.platform == "linux" and sys.maxsize > 2**32 else ""


def features() -> frozenset[str]:
    """The features of this processor; none where nobody says, or the machine is neither x86-64 nor 64-bit ARM."""
    kind = machine()
    if kind == "x86_64":
        return _x86_features()
    return arm_features(_auxiliary(_AT_HWCAP), _auxiliary(_AT_HWCAP2)) if kind == "aarch64" else frozenset()


def arm_features(hwcap: int, hwcap2: int) -> frozenset[str]:
    """The names of the bits that are set in the two words which the kernel hands to every process."""
    first = {name for name, bit in _HWCAP.items() if hwcap >> bit & 1}
    return frozenset(first | {name for name, bit in _HWCAP2.items() if hwcap2 >> bit & 1})


def _x86_features() -> frozenset[str]:
    """The flags that all processors list. What the operating system does not support is not among them."""
    try:
        lines = CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = [frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")]
    return frozenset.intersection(*flags) if flags else frozenset()


def _auxiliary(entry: int) -> int:
    """An entry of the auxiliary vector; 0 where the C library has no function for it."""
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):
        return 0
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return int(getauxval(entry))
