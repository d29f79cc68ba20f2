"""Makes a directory that appears under its name only when it is complete.

It is written beside its place, under a name that begins with a dot, and renamed at the end. A run that is killed leaves
such a directory behind. Nobody mistakes it for a model, and the next run for the same place removes it; a lock marks a
directory that is still being written. Minutes or hours lie between the first check of the place and the end, so the
place is checked again before the rename.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import SaveError, UsageError, refusals
from core.saving.leftovers import aside, lock_of, partial_of, put_back, remove_leftovers, replaced_by, resolved
from core.saving.rename import TAKEN, exchange, rename_new

_MARGIN = 1 << 20  # bytes needed besides the weights, for directories and small files


def check_destination(path: Path, *, force: bool, source: Path | None = None) -> Path:
    """The absolute form of a place where a checkpoint may be written. Changes nothing.

    Raises:
        UsageError: source and destination are the same, or one lies in the other.
        SaveError: something is there, or its parent does not exist.
    """
    place = resolved(path)
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
        # A directory that a killed run has moved away belongs here; the next run restores it.
        there = aside(place) or place if _is_free(place) else place
        if _is_free(there):
            return place
        if not force:
            raise SaveError(
                "exists already", where=place, hint="Choose another place, or --force (force=True) replaces it."
            )
        _check_replaceable(there, place)
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
def new_directory(place: Path, *, force: bool) -> Iterator[Path]:
    """A new directory that becomes ``place`` when the block ends, and is removed if the block fails.

    Args:
        place: from ``check_destination``; an empty directory there is replaced.
        force: replace a checkpoint, too; nothing else is ever replaced.

    Raises:
        SaveError: something has appeared at the place, another process is writing there, or the system refuses.
    """
    remove_leftovers(place)
    empty = place.is_dir()
    partial = partial_of(place)
    with refusals(partial):
        partial.mkdir()
        lock = lock_of(partial, place)
    try:
        yield partial
        with refusals(place):
            _flush(partial)
            _give_name(partial, place, force=force, empty=empty)
    finally:
        os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)


def _flush(directory: Path) -> None:
    """Flushes files and names to the disk before the final rename, so that a power failure leaves no half-written
    files."""
    for path in [*directory.rglob("*"), directory]:
        file = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # some file systems cannot flush directories
            os.fsync(file)
        os.close(file)


def _give_name(partial: Path, place: Path, *, force: bool, empty: bool) -> None:
    try:
        if force and os.path.lexists(place):
            _replace(partial, place)
        elif empty:
            partial.rename(place)  # fails if the place is a file or a full directory, on every system
        else:
            rename_new(partial, place)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        hint = "It was not changed, and nothing is left of this run. Choose another place, or run it again with --force"
        raise SaveError(
            "has appeared while this was written", where=place, hint=f"{hint} (force=True) to replace a checkpoint."
        ) from error
    parent = os.open(place.parent, os.O_RDONLY)
    with suppress(OSError):  # if a file system cannot, the rename reaches the disk a little later
        os.fsync(parent)
    os.close(parent)


def _replace(partial: Path, place: Path) -> None:
    """Moves ``partial`` to ``place``. A checkpoint that was there then has the name ``partial``."""
    _check_replaceable(place, place)
    if exchange(partial, place):
        try:
            _check_replaceable(partial, place)  # again: another directory may have come in between
        except SaveError:
            exchange(partial, place)
            raise
        return
    old = replaced_by(partial)
    try:
        place.rename(old)
        _check_replaceable(old, place)
        rename_new(partial, place)
    except BaseException:
        if old.exists():
            put_back(old, place)
        raise
    old.rename(partial)


def _is_free(place: Path) -> bool:
    """Whether nothing is there, or an empty directory."""
    return not place.exists() or (place.is_dir() and not any(place.iterdir()))


def _check_replaceable(directory: Path, place: Path) -> None:
    """
    Raises:
        SaveError: it is neither empty nor a checkpoint.
    """
    if directory.is_dir() and not directory.is_symlink():
        names = {path.name for path in directory.iterdir()}
        if not names or names & {"config.json", "params.json"}:
            return
    raise SaveError(
        "is not a checkpoint, and is not replaced",
        where=place,
        expected="a directory with a config.json or a params.json",
        hint="Remove it yourself if you are sure.",
    )
