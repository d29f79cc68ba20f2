"""Reads a shared library's headers: whether the file is whole, and which libraries and versions of them it needs.

Only 64-bit little-endian ELF files, which are what the CPU library's levels compile to.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_MACHINES = {62: "x86_64", 183: "aarch64"}
_LOAD, _DYNAMIC, _VERSIONS_NEEDED = 1, 6, 0x6FFFFFFE
_NEEDED = 1
_SHARED_OBJECT = 3


class ElfError(ValueError):
    """The file is no shared library, or a part of it is missing."""


@dataclass(frozen=True)
class SharedLibrary:
    """What a shared library states of itself.

    Attributes:
        machine: as ``platform.machine()`` says it.
        needed: names of the libraries that it is linked to.
        versions: versions of these libraries' symbols that it uses, such as ``GLIBC_2.17``.
    """

    machine: str
    needed: tuple[str, ...]
    versions: frozenset[str]


@dataclass(frozen=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int
    count: int


def read_library(path: Path) -> SharedLibrary:
    """Reads the headers of a shared library.

    Raises:
        ElfError: it is not one, or shorter than its own headers say.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    try:
        return _read(data)
    except ElfError:
        raise
    except (struct.error, IndexError, ValueError) as error:
        raise ElfError("its headers are damaged") from error


def _read(data: bytes) -> SharedLibrary:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ElfError("it is no 64-bit ELF file")
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != _SHARED_OBJECT or machine not in _MACHINES:
        raise ElfError("it is no shared library for x86-64 or 64-bit ARM")
    segments_at, sections_at = struct.unpack_from("<QQ", data, 32)
    segment_size, segment_count, section_size, section_count = struct.unpack_from("<4H", data, 54)
    ends = [segments_at + segment_size * segment_count, sections_at + section_size * section_count]
    for i in range(segment_count):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", data, segments_at + i * segment_size)
        ends.append(offset + size if kind == _LOAD else 0)
    if max(ends) > len(data):
        raise ElfError(f"it is cut off: {len(data):,} of {max(ends):,} bytes")
    sections = []
    for i in range(section_count):
        _, kind, _, _, offset, size, link, count = struct.unpack_from("<IIQQQQII", data, sections_at + i * section_size)
        sections.append(_Section(kind, offset, size, link, count))
    needed: list[str] = []
    versions: set[str] = set()
    for section in sections:
        if section.kind == _DYNAMIC:
            needed += _needed(data, section, sections[section.link])
        elif section.kind == _VERSIONS_NEEDED:
            versions |= _versions(data, section, sections[section.link])
    return SharedLibrary(_MACHINES[machine], tuple(needed), frozenset(versions))


def _needed(data: bytes, section: _Section, names: _Section) -> list[str]:
    entries = struct.iter_unpack("<QQ", data[section.offset : section.offset + section.size // 16 * 16])
    return [_name(data, names, value) for tag, value in entries if tag == _NEEDED]


def _versions(data: bytes, section: _Section, names: _Section) -> set[str]:
    """Follows the chain of libraries, and for each the chain of its versions."""
    found = set()
    library = section.offset
    for _ in range(section.count):
        _, count, _, first, following = struct.unpack_from("<HHIII", data, library)
        version = library + first
        for _ in range(count):
            _, _, _, name, step = struct.unpack_from("<IHHII", data, version)
            found.add(_name(data, names, name))
            version += step
        library += following
    return found


def _name(data: bytes, names: _Section, at: int) -> str:
    start = names.offset + at
    return data[start : data.index(b"\0", start)].decode("ascii")
