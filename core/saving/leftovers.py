"""Finds the directories that killed runs have left beside a place, restores what was replaced, and removes the rest.

A run writes into ``.NAME.partial-ID``. Where the file system cannot exchange two names, the directory to be replaced is
called ``.NAME.replaced-ID`` for a moment. A run holds a lock on the directory that it writes.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from pathlib import Path

from core.errors import SaveError, refusals
from core.saving.rename import TAKEN, rename_new

_PARTIAL, _REPLACED = "partial", "replaced"


def partial_of(place: Path) -> Path:
    """A new name for the directory to be written."""
    return place.with_name(f".{place.name}.{_PARTIAL}-{uuid.uuid4().hex[:12]}")


def replaced_by(partial: Path) -> Path:
    """The name for the directory that this run replaces."""
    return _twin(partial, _REPLACED)


def aside(place: Path) -> Path | None:
    """The directory that a killed run was replacing, if it has not been restored yet."""
    return next(iter(_siblings(place, _REPLACED)), None)


def restore(path: Path) -> None:
    """Restores the directory that a run was replacing when it was killed between its two renames.

    If the replacement is complete, the old directory is removed. If something else is at the place by now, the old
    directory is kept beside it, under a name that does not begin with a dot.

    Raises:
        SaveError: the system refuses.
    """
    place = resolved(path)
    if not place.parent.is_dir():
        return
    with refusals(place):
        for old in _siblings(place, _REPLACED):
            partial = _twin(old, _PARTIAL)
            if partial.is_dir():  # the second rename has not happened: its run was killed, or is just there
                try:
                    os.close(lock_of(partial, place))
                except SaveError:
                    continue
            elif place.is_dir() and any(place.iterdir()):
                shutil.rmtree(old, ignore_errors=True)
                continue
            put_back(old, place)


def put_back(old: Path, place: Path) -> None:
    """Renames a replaced directory to its old name; if that is taken by now, to a name beside it."""
    try:
        old.rename(place)  # replaces an empty directory, which the second rename may have made
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        rename_new(old, place.with_name(f"{place.name}.before-{old.name.rpartition('-')[2]}"))


def remove_leftovers(place: Path) -> None:
    """Removes what killed runs have left. Each directory is locked meanwhile, so that no other run writes to it."""
    with refusals(place):
        for partial in _siblings(place, _PARTIAL):
            try:
                lock = lock_of(partial, place)
            except SaveError:
                if partial.exists():
                    raise
                continue  # another process has just removed it
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


def lock_of(partial: Path, place: Path) -> int:
    """Opens and locks a directory that is, or was, being written.

    Raises:
        SaveError: another process holds it, or has just removed it.
    """
    lock = None
    try:
        lock = os.open(partial, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), partial.stat()):
            held, lock = lock, None
            return held
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if lock is not None:
            os.close(lock)
    raise SaveError("is being written by another process", where=place, hint="Wait until it is done.")


def _siblings(place: Path, kind: str) -> list[Path]:
    """Directories that runs for this place have made; other directories with similar names are left out."""
    own = re.compile(rf"\.{re.escape(place.name)}\.{kind}-[0-9a-f]{{12}}")
    paths = (path for path in place.parent.iterdir() if own.fullmatch(path.name))
    return sorted(path for path in paths if path.is_dir() and not path.is_symlink())


def _twin(path: Path, kind: str) -> Path:
    """The name that the same run gives to its other directory."""
    other = _REPLACED if kind == _PARTIAL else _PARTIAL
    start, _, number = path.name.rpartition(f".{other}-")
    return path.with_name(f"{start}.{kind}-{number}")


def resolved(path: Path) -> Path:
    """The absolute form of a place.

    Raises:
        SaveError: no file can have this name.
    """
    if "\0" in str(path):
        raise SaveError("is not a file name: it holds a NUL", where=path)
    # A link at the place itself is not resolved: the rename would replace the link, not its target.
    return path.expanduser().resolve()
