"""Records what the libraries in a folder were built from, in a file beside them, so that stale ones are not used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("source")
"""The C sources. An installation from a wheel has none."""
FOLDER = Path(__file__).with_name("lib")
"""Where the libraries lie, in a checkout and in an installation."""
_NAME = "built.json"

Entry = dict[str, str]
"""Digests: of the ``sources``, of what a library is ``made_with`` (compiler and flags), and of its ``file``."""


def source_files(source: Path) -> list[Path]:
    """The files that a library is made of, sorted; none where the folder is absent."""
    return sorted(path for path in source.glob("*") if path.suffix in {".c", ".h", ".inc"})


def sources_digest(source: Path) -> str:
    """A digest of the names and the contents of all sources."""
    parts = [part for file in source_files(source) for part in (file.name.encode(), file.read_bytes())]
    return digest(*parts)


def digest(*parts: bytes) -> str:
    """A digest of a sequence; where one part ends and the next begins makes a difference."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def read_manifest(folder: Path) -> dict[str, Entry]:
    """What is recorded of a folder's libraries, by level; nothing where the record is absent or damaged."""
    try:
        content = json.loads((folder / _NAME).read_bytes())
        return {str(level): {str(k): str(v) for k, v in entry.items()} for level, entry in content.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def write_manifest(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Records a folder's libraries; a reader sees the old record or the new one.

    Raises:
        OSError: the folder cannot be written.
    """
    unfinished = folder / f".{_NAME}.{os.getpid()}"
    unfinished.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    unfinished.replace(folder / _NAME)
