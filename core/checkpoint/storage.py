"""The storage of a checkpoint's files: the protocol, and its implementation for a local directory.

Every failure of the operating system becomes an error that names the file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Protocol

from core.checkpoint.header import Ranges
from core.errors import CheckpointError

_NESTED = "additional_chat_templates"
"""The one subdirectory that belongs to a checkpoint: named chat templates, one file each."""


class Storage(Protocol):
    """The files of one checkpoint, local or remote. Names are relative to its root, with ``/`` between their parts."""

    @property
    def concurrency(self) -> int:
        """How many files to read at a time."""

    @property
    def names(self) -> tuple[str, ...]:
        """All files, sorted."""

    def where(self, name: str = "") -> str:
        """How an error names a file, or the whole checkpoint."""

    def read(self, name: str, limit: int) -> bytes | None:
        """A whole file, or None if it has more than `limit` bytes."""

    def open(self, name: str) -> AbstractContextManager[Ranges]:
        """Opens a file to read byte ranges. A local file must not change meanwhile."""

    def download(self, weights: tuple[str, ...]) -> Directory:
        """Downloads what is absent; returns the directory that holds `weights` (shards, index) and the other files of
        the model."""


class _Stamp(NamedTuple):
    """The state of a file, to detect changes. The last field cannot be set back by a program."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> _Stamp:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Directory:
    """A checkpoint in a local directory."""

    concurrency = 1

    def __init__(self, path: Path) -> None:
        """
        Raises:
            CheckpointError: the directory cannot be listed.
        """
        self.path = path.absolute()
        names = list(_list(self.path))
        if (self.path / _NESTED).is_dir():
            names += [f"{_NESTED}/{name}" for name in _list(self.path / _NESTED)]
        self.names = tuple(sorted(names))
        self._stamps: dict[str, _Stamp] = {}

    def where(self, name: str = "") -> str:
        return str(self.path / name)

    def read(self, name: str, limit: int) -> bytes | None:
        with open_local(self.path / name) as file:
            data = file.read(0, limit + 1)
        return data if len(data) <= limit else None

    @contextmanager
    def open(self, name: str) -> Iterator[Ranges]:
        with open_local(self.path / name) as file:
            stamp = file.stamp()
            yield file
            self._compare(name, stamp, file.stamp())
        self._stamps[name] = stamp

    def check_unchanged(self, name: str, descriptor: int | None = None) -> None:
        """Compares a file with its state when its byte ranges were read.

        Args:
            name: of the file.
            descriptor: of the file as the caller has opened it; both it and the file of that name are checked.

        Raises:
            CheckpointError: it was replaced, was written to, or is gone.
        """
        path, before = self.path / name, self._stamps.get(name)
        try:
            self._compare(name, before, _Stamp.of(path.stat()))
            if descriptor is not None:
                self._compare(name, before, _Stamp.of(os.fstat(descriptor)))
        except OSError as exc:
            raise os_error(exc, path) from exc

    def _compare(self, name: str, before: _Stamp | None, now: _Stamp) -> None:
        if before is None or before == now:
            return
        what = "written to" if before[:2] == now[:2] else "replaced by another file"
        raise CheckpointError(
            "has changed since its header was read",
            where=self.path / name,
            expected=f"the file of {before.size:,} bytes that the header was read of",
            found=f"{now.size:,} bytes; it was {what}",
            hint="Load it again when no download, copy or training writes it any more.",
        )

    def download(self, weights: tuple[str, ...]) -> Directory:
        return self


def belongs(name: str) -> bool:
    """Whether a file, given by its path in a repository, belongs to a checkpoint."""
    return "/" not in name.removeprefix(f"{_NESTED}/")


@contextmanager
def open_local(path: Path) -> Iterator[LocalRanges]:
    """Opens a local file to read byte ranges.

    Raises:
        CheckpointError: it does not exist, is not readable, or is not a regular file.
    """
    try:
        # Check before opening: opening a named pipe would wait for its writer.
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"
            raise CheckpointError("is not a file", where=path, expected="a regular file", found=kind)
        # Unbuffered: a buffer would read on, past the end of the header.
        with path.open("rb", buffering=0) as file:
            yield LocalRanges(file)
    except OSError as exc:
        raise os_error(exc, path) from exc


class LocalRanges:
    """An open local file."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def stamp(self) -> _Stamp:
        """Its present state."""
        return _Stamp.of(os.fstat(self._file.fileno()))

    def read(self, start: int, stop: int) -> bytes:
        self._file.seek(start)
        pieces = []
        # An unbuffered file may hand out a large range in pieces.
        while start < stop and (piece := self._file.read(stop - start)):
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)


def os_error(exc: OSError, path: Path) -> CheckpointError:
    """The error for a refusal of the operating system, with what to do."""
    if isinstance(exc, FileNotFoundError):
        if path.is_symlink():
            target = path.readlink()
            hint = "the link is stale, as after a cleaned-up cache: download the checkpoint again"
            return CheckpointError("is a link to a file that does not exist", where=path, found=str(target), hint=hint)
        return CheckpointError(
            "does not exist", where=path, hint="was it moved or deleted while the checkpoint was read?"
        )
    if isinstance(exc, PermissionError):
        return CheckpointError("is not readable by this user", where=path, hint="check its permissions and owner")
    return CheckpointError(f"cannot be read: {exc.strerror or exc}", where=path)


def _list(path: Path) -> Iterator[str]:
    """Names of the files in a directory.

    A directory whose name ends like a file of a checkpoint is listed too, so that opening it raises an error.
    """
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.endswith((".safetensors", ".json")) or not _is_directory(entry):
                    yield entry.name
    except OSError as exc:
        raise os_error(exc, path) from exc


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links: opening it raises an error
        return False
