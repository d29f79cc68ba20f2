"""Renames a directory without replacing anything that has the new name.

Linux and macOS have system calls for this, which Python does not offer. Where a file system lacks them, two rules that
hold everywhere are used: ``mkdir`` refuses a name that is taken, and ``rename`` replaces only an empty directory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR})
"""Error codes of a system when a name is taken."""

# The file system has no such call, or a container forbids it. If another reason forbids it, the fallback fails too.
_NO_SUCH_CALL = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})
_LINUX = sys.platform.startswith("linux")
_NEW, _EXCHANGE = (1, 2) if _LINUX else (4, 2)  # RENAME_NOREPLACE, RENAME_EXCHANGE; RENAME_EXCL, RENAME_SWAP
_HERE = -100  # AT_FDCWD


def rename_new(directory: Path, name: Path) -> None:
    """Renames a directory to a name that is free; no other process can take the name meanwhile.

    Raises:
        OSError: one of ``TAKEN`` if the name is taken; or another error of the system.
    """
    if _system_rename(directory, name, _NEW):
        return
    name.mkdir()
    try:
        directory.rename(name)
    except OSError:
        with suppress(OSError):  # if it is no longer empty, another process uses it
            name.rmdir()
        raise


def exchange(left: Path, right: Path) -> bool:
    """Exchanges the names of two directories in one step. Returns False, without a change, where the file system
    cannot.

    Raises:
        OSError: an error of the system.
    """
    return _system_rename(left, right, _EXCHANGE)


def _system_rename(old: Path, new: Path, flag: int) -> bool:
    """Renames with the system's call; returns False where the system or the file system does not have it."""
    call = _call()
    if call is None:
        return False
    names = (_HERE, os.fsencode(old), _HERE, os.fsencode(new)) if _LINUX else (os.fsencode(old), os.fsencode(new))
    if call(*names, flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_SUCH_CALL:
        return False
    raise OSError(number, os.strerror(number), str(old), None, str(new))


@cache
def _call() -> Callable[..., int] | None:
    """``renameat2`` of Linux or ``renamex_np`` of macOS; None where the C library has neither."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2" if _LINUX else "renamex_np", None)
    if call is not None:
        place = [ctypes.c_int, ctypes.c_char_p] if _LINUX else [ctypes.c_char_p]
        call.argtypes = [*place, *place, ctypes.c_uint]
        call.restype = ctypes.c_int
    return call
