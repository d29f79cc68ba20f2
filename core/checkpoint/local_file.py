"""Reads a whole small file of a local directory, with the checks that apply to every file of a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from core.checkpoint.checkpoint import MAX_TEXT
from core.checkpoint.storage import open_local
from core.errors import CheckpointError, CoreError


def read_local(path: Path, *, error: type[CoreError], limit: int = MAX_TEXT) -> bytes | None:
    """The bytes of a text or JSON file; None where there is no such file.

    Raises:
        error: it is not a regular file (a directory, a device, a named pipe), is not readable, is a stale link, or has
            more than `limit` bytes.
    """
    if not os.path.lexists(path):
        return None
    try:
        with open_local(path) as file:
            data = b"" if file.size > limit else file.read(0, limit + 1)
            size = max(file.size, len(data))
    except CheckpointError as exc:
        raise error(exc.problem, where=path, expected=exc.expected, found=exc.found, hint=exc.hint) from exc
    if size > limit:
        raise error("is too large", where=path, expected=f"at most {limit:,} bytes")
    return data
