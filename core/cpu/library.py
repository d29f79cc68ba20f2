"""Loads the CPU library: the best level that this processor runs, or the one that ``CORE_CPU`` names, or none.

``CORE_CPU`` is ``auto`` (as if it were not set), ``off``, or a level's name. A library that is cut off, has another
version than this module, or is older than its sources is not used; ``library_status`` says so.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from core.cores import usable_cores
from core.cpu import processor
from core.cpu.elf import ElfError, read_library
from core.cpu.levels import Level, levels_of
from core.cpu.manifest import FOLDER, SOURCE, read_manifest, source_files, sources_digest
from core.errors import UsageError

VERSION = 2
"""What ``corelm_version`` of a library that fits this Python code returns: it counts changes of the C interface."""
VARIABLE = "CORE_CPU"
_MOST_NAMES = 3


@dataclass(frozen=True)
class PassedOver:
    """A level that is not used.

    Attributes:
        level: its name.
        why: half a sentence.
        broken: whether its file is there and cannot be used.
    """

    level: str
    why: str
    broken: bool = False


@dataclass(frozen=True)
class LibraryStatus:
    """Which CPU library this process uses.

    Attributes:
        level: its name; None where none is used.
        path: its file.
        passed_over: the better levels, the best first, and why each of them is not used.
        why_none: why there is no library at all, where no level has to do with it.
    """

    level: str | None
    path: Path | None
    passed_over: tuple[PassedOver, ...] = ()
    why_none: str | None = None

    def __str__(self) -> str:
        """One line, for a report."""
        text = f"{self.level} ({self.path})" if self.level else "none"
        if self.why_none:
            return f"{text}: {self.why_none}"
        return text + "".join(f"; not {one.level}: {one.why}" for one in self.passed_over)

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each library that is there and cannot be used."""
        return tuple(f"the CPU library {one.level}: {one.why}" for one in self.passed_over if one.broken)


class _RefusedError(Exception):
    """A library's file cannot be used; the text is half a sentence that says why."""


def load_library() -> ctypes.CDLL | None:
    """The library that this process uses; None where there is none, or ``CORE_CPU=off``.

    Raises:
        UsageError: ``CORE_CPU`` names what does not exist or cannot be used here.
    """
    return _chosen(os.environ.get(VARIABLE) or "auto")[0]


def library_status() -> LibraryStatus:
    """What ``load_library`` has chosen, and why.

    Raises:
        UsageError: as for ``load_library``.
    """
    return _chosen(os.environ.get(VARIABLE) or "auto")[1]


@cache
def _chosen(asked: str) -> tuple[ctypes.CDLL | None, LibraryStatus]:
    if asked == "off":
        return None, LibraryStatus(None, None, why_none=f"{VARIABLE}=off")
    levels = levels_of(processor.machine())
    if asked != "auto":
        return _named(asked, levels)
    if not levels:
        return None, LibraryStatus(None, None, why_none="it is for 64-bit Linux on x86-64 and ARM")
    if not any((FOLDER / level.file_name).exists() for level in levels):
        how = "python -m core.cpu.build" if source_files(SOURCE) else "pip install --no-binary corelm corelm"
        return None, LibraryStatus(None, None, why_none=f"it was not built; with a C compiler, {how} does")
    passed_over: list[PassedOver] = []
    for level in reversed(levels):
        path = FOLDER / level.file_name
        try:
            library = _open(level)
        except _RefusedError as error:
            passed_over.append(PassedOver(level.name, str(error), broken=path.exists() and not _missing(level)))
        else:
            return library, LibraryStatus(level.name, path, tuple(passed_over))
    return None, LibraryStatus(None, None, tuple(passed_over))


def _named(asked: str, levels: tuple[Level, ...]) -> tuple[ctypes.CDLL, LibraryStatus]:
    """The level that the user has asked for, and no other."""
    found = repr(asked)
    for level in levels:
        if level.name == asked:
            try:
                return _open(level), LibraryStatus(level.name, FOLDER / level.file_name)
            except _RefusedError as error:
                found += f": {error}"
    usable = [
        one.name for one in levels if one.name != asked and (FOLDER / one.file_name).exists() and not _missing(one)
    ]
    raise UsageError(
        f"the environment variable {VARIABLE} names no CPU library that can be used here",
        expected=", ".join(["auto", "off", *usable]),
        found=found,
    )


def _missing(level: Level) -> list[str]:
    """What the level uses and this processor lacks."""
    return sorted(level.features - processor.features())


def _open(level: Level) -> ctypes.CDLL:
    """Loads a level's library.

    Raises:
        _RefusedError: this processor cannot run it, or its file is absent, damaged or stale.
    """
    path = FOLDER / level.file_name
    lacking = _missing(level)
    if lacking:
        more = ", …" if len(lacking) > _MOST_NAMES else ""
        raise _RefusedError(f"this processor has no {', '.join(lacking[:_MOST_NAMES])}{more}")
    if not path.is_file():
        raise _RefusedError(f"{path.name} was not built")
    _check_file(path, level)
    try:
        library = ctypes.CDLL(str(path))
        found = library.corelm_version()
    except (OSError, AttributeError) as error:
        raise _RefusedError(f"{path} cannot be loaded: {error}") from error
    if found != VERSION:
        raise _RefusedError(f"{path} has version {found}, and this core needs {VERSION}: install it again")
    library.corelm_threads(usable_cores())
    return library


def _check_file(path: Path, level: Level) -> None:
    """Looks before the file is mapped: code in a file that is cut off ends the process."""
    try:
        machine = read_library(path).machine
    except (ElfError, OSError) as error:
        raise _RefusedError(f"{path} is damaged: {error}") from error
    if machine != level.machine:
        raise _RefusedError(f"{path} is for {machine}")
    if source_files(SOURCE):
        built = read_manifest(path.parent).get(level.name, {})
        if built.get("sources") != sources_digest(SOURCE):
            raise _RefusedError(f"{path} is older than its sources: run python -m core.cpu.build")
