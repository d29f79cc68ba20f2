"""The library for calls that are made only where there is one."""

from __future__ import annotations

import ctypes

from core.cpu.library import load_library


def library() -> ctypes.CDLL:
    """The library of this process, which must have one."""
    found = load_library()
    assert found is not None
    return found
