"""Finds where a loaded shared library keeps the addresses of the functions that it takes from others (ELF, 64 bits).

Structure and numbers are those of the System V ABI and its supplements for x86-64 and AArch64.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.blas.memory import Memory, MemoryDoubtError

_HEADER = struct.Struct("<4sBBBB8xHH")  # magic, class, byte order, version, system, type, machine
_ROW = 24  # bytes of a relocation (offset, symbol and type, addend), and of a symbol
# What the dynamic linker fills with a function's address: the slots of calls, of other uses, and of tables.
_KINDS = {62: frozenset({7, 6, 1}), 183: frozenset({1026, 1025, 257})}
_NEEDED, _PLTRELSZ, _STRTAB, _SYMTAB, _RELA, _RELASZ, _RELAENT = 1, 2, 5, 6, 7, 8, 9
_STRSZ, _SYMENT, _PLTREL, _JMPREL, _RELACOUNT = 10, 11, 20, 23, 0x6FFFFFF9
_LINK_MAP = 2  # what dlinfo is asked for
_LOADED_ONLY = 4  # RTLD_NOLOAD: a library that is not loaded is not found
_MOST = 1 << 26  # bytes of a table; a larger one is a misreading


class _LinkMap(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_uint64))


class Imports:
    """What a loaded library takes from others.

    Args:
        path: the library's file, as the memory's areas name it.
        memory: of this process.

    Attributes:
        libraries: the names of the libraries that it needs.

    Raises:
        MemoryDoubtError: the library is not loaded, or its tables are not what they should be.
    """

    def __init__(self, path: str, memory: Memory) -> None:
        self._path, self._memory = path, memory
        self._base, dynamic = _place(path)
        self._kinds = _KINDS[_machine(self._base, path, memory)]
        self._tags, needed = _tags(dynamic, memory)
        sizes = (self._tags.get(_PLTREL, _RELA), self._tags.get(_RELAENT, _ROW), self._tags.get(_SYMENT, _ROW))
        if sizes != (_RELA, _ROW, _ROW):
            raise MemoryDoubtError(f"{path} has tables of another form")
        self._strings = self._table(_STRTAB, self._tags.get(_STRSZ, 0))
        ends = [self._strings.index(b"\0", at) for at in needed]
        self.libraries = tuple(
            self._strings[at:end].decode(errors="replace") for at, end in zip(needed, ends, strict=True)
        )

    def slots(self, names: Iterable[str]) -> dict[int, str]:
        """Address of each slot that holds the address of one of these functions → which. No slot for some is no error.

        Raises:
            MemoryDoubtError: the tables are not what they should be.
        """
        found = [
            *self._relocations(_JMPREL, _PLTRELSZ),
            *self._relocations(_RELA, _RELASZ, self._tags.get(_RELACOUNT, 0)),
        ]
        last = max((symbol for _, symbol in found), default=0)
        name_of = memoryview(self._table(_SYMTAB, (last + 1) * _ROW)).cast("I")[:: _ROW // 4].tolist()
        wanted = {at: name for name in names for at in _occurrences(self._strings, name.encode() + b"\0")}
        return {self._base + offset: wanted[name_of[symbol]] for offset, symbol in found if name_of[symbol] in wanted}

    def _table(self, tag: int, size: int) -> bytes:
        address = self._tags.get(tag, 0)
        if not address or size > _MOST:
            raise MemoryDoubtError(f"{self._path} has no table {tag} of a sensible size")
        return self._memory.read(address if address >= self._base else self._base + address, size)

    def _relocations(self, tag: int, size_tag: int, skip: int = 0) -> list[tuple[int, int]]:
        """Offsets and symbols of those that take a function's address as it is; the first ``skip`` are left out."""
        size = self._tags.get(size_tag, 0)
        if not size:
            return []
        words = memoryview(self._table(tag, size)).cast("Q")[skip * _ROW // 8 :].tolist()
        rows = zip(words[0::3], words[1::3], words[2::3], strict=True)
        return [
            (offset, info >> 32) for offset, info, addend in rows if (info & 0xFFFFFFFF) in self._kinds and not addend
        ]


def _occurrences(strings: bytes, text: bytes) -> Iterator[int]:
    """Where a text begins; the linker lets a name be the end of another."""
    at = strings.find(text)
    while at >= 0:
        yield at
        at = strings.find(text, at + 1)


def _place(path: str) -> tuple[int, int]:
    """Where a loaded library begins, and where its dynamic section lies."""
    try:
        handle = ctypes.CDLL(path, mode=_LOADED_ONLY)._handle
        ask = ctypes.CDLL(None).dlinfo
    except (OSError, AttributeError) as error:
        raise MemoryDoubtError(f"{path} cannot be looked up among the loaded libraries ({error})") from None
    ask.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    found = ctypes.POINTER(_LinkMap)()
    if ask(handle, _LINK_MAP, ctypes.byref(found)) or not found:
        raise MemoryDoubtError(f"the linker does not say where {path} lies")
    place = found.contents
    if not place.name or not Path(os.fsdecode(place.name)).samefile(path):
        raise MemoryDoubtError(f"the linker takes {path} for another library")
    return int(place.address), int(place.dynamic)


def _machine(base: int, path: str, memory: Memory) -> int:
    if memory.area(base).file != path:
        raise MemoryDoubtError(f"{path} does not begin where the linker says")
    magic, bits, order, _, _, kind, machine = _HEADER.unpack(memory.read(base, _HEADER.size))
    if (magic, bits, order, kind) != (b"\x7fELF", 2, 1, 3) or machine not in _KINDS:
        raise MemoryDoubtError(f"{path} is not a library for x86-64 or AArch64")
    return int(machine)


def _tags(dynamic: int, memory: Memory) -> tuple[dict[int, int], list[int]]:
    """The entries of the dynamic section by their tags, and the names of needed libraries, as offsets."""
    area = memory.area(dynamic, 16)
    pairs = memoryview(memory.read(dynamic, min(1024, (area.end - dynamic) // 16) * 16)).cast("Q")
    tags: dict[int, int] = {}
    needed: list[int] = []
    for at in range(0, len(pairs), 2):
        tag, value = pairs[at], pairs[at + 1]
        if tag == 0:
            return tags, needed
        needed += [value] if tag == _NEEDED else []
        tags[tag] = value
    raise MemoryDoubtError("a dynamic section has no end")
