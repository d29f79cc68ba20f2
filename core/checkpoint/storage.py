"""Where a checkpoint's bytes are: the protocol of a storage, and the one of a local directory.

Knows file names and byte ranges, and turns every failure of the operating system into one error that names the file.
Knows nothing of what the files mean.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from core.checkpoint.header import Ranges
from core.errors import CheckpointError

_NESTED = ("additional_chat_templates",)
"""The one subdirectory that belongs to a checkpoint: named chat templates, one file each."""


class Storage(Protocol):
    """The files of one checkpoint, wherever they are. Names are relative to its root, their parts joined by ``/``."""

    @property
    def names(self) -> tuple[str, ...]:
        """All files, sorted."""

    def where(self, name: str = "") -> str:
        """How an error names a file, or the whole checkpoint."""

    def read(self, name: str, limit: int) -> bytes:
        """A whole file, of which at most `limit` + 1 bytes are read: a longer result says that it is larger."""

    def open(self, name: str) -> AbstractContextManager[Ranges]:
        """A file of which ranges are to be read."""


class Directory:
    """A checkpoint in a local directory."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            CheckpointError: the directory cannot be listed.
        """
        self.path = path.absolute()
        names = list(_list(self.path))
        for nested in _NESTED:
            if (self.path / nested).is_dir():
                names += [f"{nested}/{name}" for name in _list(self.path / nested)]
        self.names = tuple(sorted(names))

    def where(self, name: str = "") -> str:
        return str(self.path / name)

    def read(self, name: str, limit: int) -> bytes:
        with self._open(name) as file:
            return _read_up_to(file, limit + 1)

    @contextmanager
    def open(self, name: str) -> Iterator[Ranges]:
        with self._open(name) as file:
            yield _LocalRanges(file)

    @contextmanager
    def _open(self, name: str) -> Iterator[BinaryIO]:
        path = self.path / name
        try:
            # Asked before opening: to open a named pipe would wait for its writer.
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                kind = "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"
                raise CheckpointError("is not a file", where=path, expected="a regular file", found=kind)
            # Unbuffered: a buffer would read on, past the end of the header.
            with path.open("rb", buffering=0) as file:
                yield file
        except OSError as exc:
            raise os_error(exc, path) from exc


class _LocalRanges:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def read(self, start: int, stop: int) -> bytes:
        self._file.seek(start)
        return _read_up_to(self._file, stop - start)


def os_error(exc: OSError, path: Path) -> CheckpointError:
    """The operating system's refusal, as an error that says what to do."""
    if isinstance(exc, FileNotFoundError):
        if path.is_symlink():
            target = path.readlink()
            hint = "the link is stale, as after a cleaned-up cache: download the checkpoint again"
            return CheckpointError("is a link to a file that does not exist", where=path, found=str(target), hint=hint)
        return CheckpointError(
            "does not exist", where=path, hint="was it moved or deleted while the checkpoint was read?"
        )
    if isinstance(exc, PermissionError):
        return CheckpointError("may not be read by this user", where=path, hint="check its permissions and owner")
    return CheckpointError(f"cannot be read: {exc.strerror or exc}", where=path)


def _list(path: Path) -> Iterator[str]:
    """Names of the files in a directory.

    A directory is listed too if its name ends like a file of a checkpoint, so that whoever opens it is told.
    """
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.endswith((".safetensors", ".json")) or not entry.is_dir():
                    yield entry.name
    except OSError as exc:
        raise os_error(exc, path) from exc


def _read_up_to(file: BinaryIO, count: int) -> bytes:
    """`count` bytes, or fewer at the end of the file; an unbuffered file may hand them out in pieces."""
    pieces = []
    while count > 0 and (piece := file.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
