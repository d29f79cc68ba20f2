"""A directory that appears under its name only when it is complete.

It is written beside its place, under a name that begins with a dot, and renamed at the end. A run that was killed
leaves such a directory behind, which no one mistakes for a model and which the next run for the same place removes; a
lock tells it from one that is still being written. Knows the file system; knows nothing of what is written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import SaveError, UsageError
from core.saving.writer import refusals

_MARGIN = 1 << 20  # bytes beside the files, for directories and small ones


def check_destination(path: Path, *, force: bool, source: Path | None = None) -> Path:
    """The absolute form of a place where a checkpoint may be written.

    Raises:
        UsageError: source and destination are the same, or one lies in the other.
        SaveError: something is there, or its parent is not.
    """
    # Not by way of a link at the place itself: a rename would replace the link and leave what it points to.
    place = path.expanduser().resolve()
    if source is not None:
        origin = source.resolve()
        if place == origin or origin in place.parents:
            raise UsageError(
                "the destination is the source, or inside of it", where=place, hint="Choose another place."
            )
        if place in origin.parents:
            raise UsageError("the destination holds the source", where=place, hint="Choose another place.")
    if not place.parent.is_dir():
        raise SaveError(
            "its parent directory does not exist", where=place, hint=f"Create it first: mkdir -p {place.parent}"
        )
    with refusals(place):
        _restore(place)
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            return place
        if not force:
            raise SaveError(
                "exists already", where=place, hint="Choose another place, or --force (force=True) replaces it."
            )
        if not any((place / name).is_file() for name in ("config.json", "params.json")):
            raise SaveError(
                "is no checkpoint, and is not replaced",
                where=place,
                expected="a directory with a config.json or a params.json",
                hint="Remove it yourself if you are sure.",
            )
    return place


def check_space(place: Path, needed: int) -> None:
    """
    Raises:
        SaveError: the disk has less room than ``needed`` bytes.
    """
    free = shutil.disk_usage(place.parent).free
    if free < needed + _MARGIN:
        raise SaveError(
            "there is not enough room on the disk",
            where=place.parent,
            expected=f"{needed + _MARGIN:,} bytes",
            found=f"{free:,} bytes free",
            hint="Make room, choose another place, or fewer bits.",
        )


@contextmanager
def new_directory(place: Path) -> Iterator[Path]:
    """A fresh directory that becomes ``place`` when the block ends, and vanishes if the block fails.

    Args:
        place: from ``check_destination``; what is there is replaced.

    Raises:
        SaveError: another process is writing the same place, or the system refuses.
    """
    _remove_leftovers(place)
    partial = place.with_name(f".{place.name}.partial-{uuid.uuid4().hex[:12]}")
    with refusals(partial):
        partial.mkdir()
        lock = os.open(partial, os.O_RDONLY)
    try:
        with refusals(partial):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        with refusals(place):
            _flush(partial)
            _rename(partial, place)
    finally:
        os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)


def _flush(directory: Path) -> None:
    """Files and names reach the disk before the name of the whole does: power may fail, too."""
    for path in [*directory.rglob("*"), directory]:
        file = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # some file systems flush no directories
            os.fsync(file)
        os.close(file)


def _rename(partial: Path, place: Path) -> None:
    """Two renames where something is there, because no system renames a directory over a full one."""
    old = place.with_name(f".{place.name}.replaced-{uuid.uuid4().hex[:12]}")
    replaces = place.exists() and any(place.iterdir())
    if replaces:
        place.rename(old)
    try:
        partial.rename(place)
    except OSError:
        if replaces:
            old.rename(place)
        raise
    parent = os.open(place.parent, os.O_RDONLY)
    with suppress(OSError):  # some file systems cannot; the rename then reaches the disk a little later
        os.fsync(parent)
    os.close(parent)
    shutil.rmtree(old, ignore_errors=True)


def _restore(place: Path) -> None:
    """Puts back what a run was replacing when it was killed between its two renames; else removes what it replaced."""
    for old in _siblings(place, "replaced"):
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(place)


def _remove_leftovers(place: Path) -> None:
    for partial in _siblings(place, "partial"):
        with refusals(partial):
            try:
                lock = os.open(partial, os.O_RDONLY)
            except FileNotFoundError:
                continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SaveError("is being written by another process", where=place, hint="Wait until it is done.") from None
        finally:
            os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)


def _siblings(place: Path, kind: str) -> list[Path]:
    start = f".{place.name}.{kind}-"
    return sorted(path for path in place.parent.iterdir() if path.name.startswith(start) and path.is_dir())
