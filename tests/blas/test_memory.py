"""Memory is read and written where the system says that it may be, and nowhere else."""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
from pathlib import Path

import pytest

from core.blas import imports
from core.blas.imports import Imports
from core.blas.memory import Memory, MemoryDoubtError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
LINES = [
    "7f0000001000-7f0000003000 r-xp 00001000 08:01 42   /a folder/libmlx.so",
    "7f0000003000-7f0000004000 rw-p 00000000 00:00 0",
    "7f0000004000-7f0000005000 rw-s 00000000 00:00 0   /libmlx.so (deleted)",
    "7f0000005000-7f0000006000 ---p 00000000 00:00 0",
]


def test_the_areas_that_the_system_lists() -> None:
    memory = Memory(LINES)
    assert memory.files("libmlx.so") == {"/a folder/libmlx.so"}
    assert memory.area(0x7F0000001000, 0x2000).offset == 0x1000
    assert memory.is_code(0x7F0000002FFF)
    assert not memory.is_code(0x7F0000003000)
    with pytest.raises(MemoryDoubtError, match="no memory"):
        memory.area(0x7F0000002FFF, 2)  # across two areas
    with pytest.raises(MemoryDoubtError, match="cannot be read"):
        memory.read(0x7F0000005000, 8)
    with pytest.raises(MemoryDoubtError, match="not data of this process alone"):
        memory.write_pointer(0x7F0000004000, 1)
    with pytest.raises(MemoryDoubtError, match="not data of this process alone"):
        memory.write_pointer(0x7F0000003004, 1)  # not a multiple of 8
    with pytest.raises(MemoryDoubtError, match="not data of this process alone"):
        memory.write_pointer(0x7F0000005000, 1)


def test_what_was_made_read_only_is_so_again_after_writing() -> None:
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ) == 0
    memory = Memory()
    assert memory.area(address).access == "r--p"
    memory.write_pointer(address + 16, 0x1122334455667788)
    assert memory.read_pointer(address + 16) == 0x1122334455667788
    assert Memory().area(address).access == "r--p"


class Image:
    """A library as it lies in memory, with one symbol in a table of each kind."""

    BASE = 0x10000

    def __init__(self, machine: int, slot_kinds: tuple[int, ...], relocated: bool = True) -> None:
        strings = b"\0libcublasLt.so.13\0scipy_cblas_sgemm\0cblas_dgemm\0"
        self.image = bytearray(0x1000)
        self.image[:20] = struct.pack("<4sBBBB8xHH", b"\x7fELF", 2, 1, 1, 0, 3, machine)
        own, other = strings.index(b"cblas_sgemm"), strings.index(b"scipy")
        symbols = [0, own, other, strings.index(b"cblas_dgemm")]
        slots = [(0x800 + 8 * at, 1, kind, 0) for at, kind in enumerate(slot_kinds)]
        relative = [(0x900, 0, 8, 0x123)]
        others = [(0x908, 1, slot_kinds[-1], 8), (0x910, 2, slot_kinds[0], 0), (0x918, 3, 9999, 0)]
        tables = {
            5: (0x100, strings),
            6: (0x200, b"".join(struct.pack("<IBBHQQ", name, 0, 0, 0, 0, 0) for name in symbols)),
            23: (0x300, self._rows(slots[:1])),
            7: (0x400, self._rows(relative + slots[1:] + others)),
        }
        for at, table in tables.values():
            self.image[at : at + len(table)] = table
        shift = self.BASE if relocated else 0
        tags = [(1, 1), (20, 7), (9, 24), (11, 24), (10, len(strings)), (2, 24), (0x6FFFFFF9, 1)]
        tags += [(8, len(tables[7][1])), *((tag, at + shift) for tag, (at, _) in tables.items()), (0, 0)]
        self.image[0x600 : 0x600 + 16 * len(tags)] = b"".join(struct.pack("<QQ", *pair) for pair in tags)

    @staticmethod
    def _rows(rows: list[tuple[int, int, int, int]]) -> bytes:
        return b"".join(struct.pack("<QQq", at, symbol << 32 | kind, addend) for at, symbol, kind, addend in rows)

    def read(self, memory: Memory, address: int, size: int) -> bytes:
        return bytes(self.image[address - self.BASE : address - self.BASE + size])


@pytest.mark.parametrize("relocated", [True, False])
@pytest.mark.parametrize(("machine", "kinds"), [(62, (7, 6, 1)), (183, (1026, 1025, 257))])
def test_the_slots_of_a_function(
    machine: int, kinds: tuple[int, ...], relocated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots of calls, of other uses and of tables; not those of other names, of other kinds, or with an offset."""
    image = Image(machine, kinds, relocated)
    monkeypatch.setattr(imports, "_place", lambda path: (image.BASE, image.BASE + 0x600))
    monkeypatch.setattr(Memory, "read", lambda *arguments: image.read(*arguments))
    memory = Memory([f"{image.BASE:x}-{image.BASE + 0x1000:x} rw-p 00000000 08:01 42 /libmlx.so"])
    found = Imports("/libmlx.so", memory)
    assert found.libraries == ("libcublasLt.so.13",)
    slots = dict.fromkeys((image.BASE + 0x800, image.BASE + 0x808, image.BASE + 0x810), "cblas_sgemm")
    assert found.slots(["cblas_sgemm", "cblas_cgemm"]) == slots
    assert found.slots(["cblas_dgemm"]) == {}


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [(0, b"\x7fELG", "not a library for"), (4, b"\x01", "not a library for"), (5, b"\x02", "not a library for"),
     (18, b"\xf3", "not a library for"), (0x610, b"\x14\0\0\0\0\0\0\0\x11", "tables of another form")],
)  # fmt: skip
def test_another_kind_of_library_is_left_alone(
    at: int, value: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image(62, (7, 6, 1))
    image.image[at : at + len(value)] = value
    monkeypatch.setattr(imports, "_place", lambda path: (image.BASE, image.BASE + 0x600))
    monkeypatch.setattr(Memory, "read", lambda *arguments: image.read(*arguments))
    memory = Memory([f"{image.BASE:x}-{image.BASE + 0x1000:x} rw-p 00000000 08:01 42 /libmlx.so"])
    with pytest.raises(MemoryDoubtError, match=said):
        Imports("/libmlx.so", memory)


def test_a_library_that_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(MemoryDoubtError, match="cannot be looked up"):
        Imports(str(tmp_path / "libmlx.so"), Memory())
