"""The platform tag of a wheel with shared libraries in it: PEP 600's, where they need glibc and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from core.cpu.elf import read_library

# What every Linux with glibc has, and PEP 600 lets a wheel need.
_ALLOWED = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
_OLDEST = 17


def platform_tag(libraries: Iterable[Path], machine: str) -> str:
    """``manylinux_2_N_MACHINE`` for the oldest glibc that the libraries run with, from 2.17 on; else ``linux_MACHINE``.

    Raises:
        ElfError: a file is no shared library.
        OSError: it cannot be read.
    """
    least = _OLDEST
    for path in libraries:
        library = read_library(path)
        versions = [re.fullmatch(r"GLIBC_2\.(\d+)(?:\.\d+)?", version) for version in library.versions]
        if library.machine != machine or not _ALLOWED.issuperset(library.needed) or None in versions:
            return f"linux_{machine}"
        least = max([least, *(int(version[1]) for version in versions if version)])
    return f"manylinux_2_{least}_{machine}"
