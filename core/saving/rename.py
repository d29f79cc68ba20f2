"""Gives a directory another name without ever taking that name from something else.

Linux and macOS have system calls for this, which Python does not offer. Where a file system has not, what every one
has is put to use: ``mkdir`` refuses a name that is taken, and ``rename`` replaces no directory but an empty one.
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
"""What a system answers when a name is taken."""

# The file system has no such call, or a container forbids it; what is forbidden for another reason fails either way.
_NO_SUCH_CALL = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})
_LINUX = sys.platform.startswith("linux")
_NEW, _EXCHANGE = (1, 2) if _LINUX else (4, 2)  # RENAME_NOREPLACE, RENAME_EXCHANGE; RENAME_EXCL, RENAME_SWAP
_HERE = -100  # AT_FDCWD


def rename_new(directory: Path, name: Path) -> None:
    """Renames a directory to a name that nothing has; no one else can take it meanwhile.

    Raises:
        OSError: one of ``TAKEN`` if something has the name; or what the system says.
    """
    if _system_rename(directory, name, _NEW):
        return
    name.mkdir()
    try:
        directory.rename(name)
    except OSError:
        with suppress(OSError):  # it is no longer empty: then it is someone else's
            name.rmdir()
        raise


def exchange(left: Path, right: Path) -> bool:
    """Exchanges the names of two directories in one step; False where the file system cannot, and nothing is done.

    Raises:
        OSError: what the system says.
    """
    return _system_rename(left, right, _EXCHANGE)


def _system_rename(old: Path, new: Path, flag: int) -> bool:
    """Whether the system and the file system have the call."""
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
