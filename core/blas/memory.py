"""Reads and changes this process's memory by address, after it has looked up what lies there."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_MAPS = Path("/proc/self/maps")


class MemoryDoubtError(Exception):
    """Something in memory is not what it was expected to be, so nothing is changed."""


@dataclass(frozen=True)
class Area:
    """A range of addresses. ``access`` is as ``rw-p``: read, write, execute, private."""

    start: int
    end: int
    access: str
    offset: int
    file: str


class Memory:
    """The areas of this process's memory, as they are when this object is made."""

    def __init__(self, lines: Iterable[str] | None = None) -> None:
        text = _MAPS.read_text(errors="surrogateescape").splitlines() if lines is None else lines
        self.areas = tuple(_area(line) for line in text)

    def files(self, name: str) -> set[str]:
        """The paths of the mapped files with this name."""
        return {area.file for area in self.areas if area.file.rpartition("/")[2] == name}

    def area(self, address: int, size: int = 1) -> Area:
        """The area that holds all of ``size`` bytes from ``address`` on.

        Raises:
            MemoryDoubtError: no single area holds them.
        """
        for area in self.areas:
            if area.start <= address and address + size <= area.end:
                return area
        raise MemoryDoubtError(f"no memory of this process lies at {address:#x}")

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes from ``address`` on.

        Raises:
            MemoryDoubtError: they cannot be read.
        """
        if size <= 0 or not self.area(address, size).access.startswith("r"):
            raise MemoryDoubtError(f"memory at {address:#x} cannot be read")
        return ctypes.string_at(address, size)

    def read_pointer(self, address: int) -> int:
        """The address that is stored at ``address``.

        Raises:
            MemoryDoubtError: it cannot be read.
        """
        return int.from_bytes(self.read(address, 8), "little")

    def is_code(self, address: int) -> bool:
        """Whether what lies at ``address`` can be executed."""
        return any(area.start <= address < area.end and "x" in area.access for area in self.areas)

    def write_pointer(self, address: int, value: int) -> None:
        """Stores an address at ``address``, in one step as other threads see it.

        Memory that was made read-only after it was filled is made writable for as long as that takes.

        Raises:
            MemoryDoubtError: the address is not a multiple of 8, or the memory cannot be made writable.
        """
        area = self.area(address, 8)
        if address % 8 or area.access[0] != "r" or area.access[2:] != "-p":
            raise MemoryDoubtError(f"memory at {address:#x} is not data of this process alone ({area.access})")
        slot = ctypes.c_uint64.from_address(address)
        if area.access[1] == "w":
            slot.value = value
            return
        _protect(address, mmap.PROT_READ | mmap.PROT_WRITE)
        try:
            slot.value = value
        finally:
            _protect(address, mmap.PROT_READ)


def _area(line: str) -> Area:
    span, access, offset, _, _, *file = line.split(maxsplit=5)
    start, _, end = span.partition("-")
    return Area(int(start, 16), int(end, 16), access, int(offset, 16), file[0] if file else "")


def _protect(address: int, access: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    start = address - address % mmap.PAGESIZE
    if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE), ctypes.c_int(access)):
        raise MemoryDoubtError(f"memory at {address:#x} cannot be made writable (error {ctypes.get_errno()})")
