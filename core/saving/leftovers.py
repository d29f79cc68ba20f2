"""Finds the directories that killed runs have left beside a place, puts back what was there, and removes the rest.

A run writes into ``.NAME.partial-ID``. Where the file system cannot exchange two names, what it replaces is called
``.NAME.replaced-ID`` for a moment. A run holds a lock on what it is writing.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from pathlib import Path

from core.errors import SaveError
from core.saving.rename import TAKEN, rename_new
from core.saving.writer import refusals

_PARTIAL, _REPLACED = "partial", "replaced"


def partial_of(place: Path) -> Path:
    """A fresh name for what is being written."""
    return place.with_name(f".{place.name}.{_PARTIAL}-{uuid.uuid4().hex[:12]}")


def replaced_by(partial: Path) -> Path:
    """The name for what this run replaces."""
    return _twin(partial, _REPLACED)


def aside(place: Path) -> Path | None:
    """What a killed run was replacing, if it has not come back yet."""
    return next(iter(_siblings(place, _REPLACED)), None)


def restore(path: Path) -> None:
    """Puts back what a run was replacing when it was killed between its two renames.

    Where the replacement had arrived, what it replaced is removed. Where something else is at the place by now, what
    was there is kept beside it, under a name that does not begin with a dot.

    Raises:
        SaveError: the system refuses.
    """
    place = resolved(path)
    if not place.parent.is_dir():
        return
    with refusals(place):
        for old in _siblings(place, _REPLACED):
            partial = _twin(old, _PARTIAL)
            if partial.is_dir():  # its run has not come to the second rename: it was killed, or is just there
                try:
                    os.close(lock_of(partial, place))
                except SaveError:
                    continue
            elif place.is_dir() and any(place.iterdir()):
                shutil.rmtree(old, ignore_errors=True)
                continue
            put_back(old, place)


def put_back(old: Path, place: Path) -> None:
    """Gives what was aside its name again, or a name beside it if something else has it by now."""
    try:
        old.rename(place)  # replaces an empty directory, which the second rename may have begun with
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        rename_new(old, place.with_name(f"{place.name}.before-{old.name.rpartition('-')[2]}"))


def remove_leftovers(place: Path) -> None:
    """What killed runs have left; each is locked while it is removed, so that no one begins to write there."""
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
    """Directories that a run for this place has made; what is only called alike is someone else's."""
    own = re.compile(rf"\.{re.escape(place.name)}\.{kind}-[0-9a-f]{{12}}")
    paths = (path for path in place.parent.iterdir() if own.fullmatch(path.name))
    return sorted(path for path in paths if path.is_dir() and not path.is_symlink())


def _twin(path: Path, kind: str) -> Path:
    """The name that the same run gives to a directory of the other kind."""
    other = _REPLACED if kind == _PARTIAL else _PARTIAL
    start, _, number = path.name.rpartition(f".{other}-")
    return path.with_name(f"{start}.{kind}-{number}")


def resolved(path: Path) -> Path:
    """The absolute form of a place.

    Raises:
        SaveError: no file can have this name.
    """
    if "\0" in str(path):
        raise SaveError("is no name of a file: it holds a NUL", where=path)
    # Not by way of a link at the place itself: a rename would replace the link and leave what it points to.
    return path.expanduser().resolve()
