"""The library as single calls use it: with a thread for each core."""

from __future__ import annotations

import ctypes
import functools
import os

from core.cpu.library import load_library


def library() -> ctypes.CDLL:
    """The library of this process, which must have one."""
    found = load_library()
    assert found is not None
    _hire(found)
    return found


@functools.cache
def _hire(found: ctypes.CDLL) -> None:
    """Gives the library as many threads as this process has cores."""
    found.corelm_threads(len(os.sched_getaffinity(0)))
