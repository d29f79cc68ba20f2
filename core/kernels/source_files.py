"""Kernels' sources, from the CUDA and Metal files beside the Python that uses them."""

from __future__ import annotations

import functools
import re
from pathlib import Path

CUDA = Path(__file__).parent / "cuda"
METAL = Path(__file__).parent / "metal"
_OWN_INCLUDE = re.compile(r'#include "([^"]+)"\s*')


@functools.cache
def source_text(file: Path) -> str:
    """A file's text, with the files that it includes by ``#include "..."`` in place of these lines.

    MLX compiles a source from one string, without a folder to look in. As after ``#pragma once``, a file comes once.
    """
    return _expanded(file, set())


def _expanded(file: Path, seen: set[Path]) -> str:
    file = file.resolve()
    if file in seen:
        return ""
    seen.add(file)
    parts = []
    for line in _read(file).splitlines(keepends=True):
        if found := _OWN_INCLUDE.fullmatch(line):
            parts.append(_expanded(file.parent / found[1], seen))
        elif line.rstrip() != "#pragma once":
            parts.append(line)
    return "".join(parts)


@functools.cache
def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")
