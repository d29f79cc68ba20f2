"""Keeps compiled code, and which of it has passed its check, in the user's cache folder.

Every entry carries a checksum, and is written under another name first: what is read is whole, or counts as absent. A
folder that cannot be read or written costs time, never more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from core.kernels.cuda_code.nvrtc import Code

_MAX_AGE = 90 * 24 * 3600  # seconds until the folder of another environment is deleted


def cache_folder() -> Path | None:
    """Where this user's compiled kernels are kept; None where that is switched off, or there is no home.

    ``CORE_KERNEL_CACHE`` names another folder, or is ``off``; else it is ``corelm/kernels`` in ``$XDG_CACHE_HOME`` or
    ``~/.cache``.
    """
    chosen = os.environ.get("CORE_KERNEL_CACHE")
    if chosen:
        return None if chosen == "off" else Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "corelm" / "kernels"
    except RuntimeError:  # no home
        return None


def digest(*parts: object) -> str:
    """A key made of the texts of ``parts``."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there with all of ``data``, or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


class CodeStore:
    """Compiled code of one environment: device, driver, compiler, MLX.

    Args:
        folder: holds a folder for each environment; None keeps nothing.
        environment: all on which compiled code depends.
    """

    def __init__(self, folder: Path | None, environment: tuple[str, ...]) -> None:
        self._folder = None if folder is None else folder / digest(*environment)[:16]
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._open(self._folder, environment)

    def load(self, key: str) -> Code | None:
        """The code kept under a key; None where there is none, or it is damaged."""
        entry = self._read(key + ".code")
        if entry is None:
            return None
        symbol, _, cubin = entry.partition(b"\n")
        return Code(cubin, symbol.decode(errors="replace"))

    def save(self, key: str, code: Code) -> None:
        """Keeps code under a key, if the folder allows it."""
        self._write(key + ".code", code.symbol.encode() + b"\n" + code.cubin)

    def passed(self, key: str) -> bool:
        """Whether the check of this key has passed before."""
        return self._read(key + ".passed") == key.encode()

    def note_passed(self, key: str) -> None:
        """Remembers that the check of this key has passed, if the folder allows it."""
        self._write(key + ".passed", key.encode())

    def _read(self, name: str) -> bytes | None:
        if self._folder is None:
            return None
        try:
            data = (self._folder / name).read_bytes()
        except OSError:
            return None
        checksum, _, entry = data.partition(b"\n")
        return entry if checksum == hashlib.sha256(entry).hexdigest().encode() else None

    def _write(self, name: str, entry: bytes) -> None:
        if self._folder is not None:
            with contextlib.suppress(OSError):
                write_whole(self._folder / name, hashlib.sha256(entry).hexdigest().encode() + b"\n" + entry)

    @staticmethod
    def _open(folder: Path, environment: tuple[str, ...]) -> None:
        """Makes the folder, says in it what it is for, and deletes those that nobody has used for long."""
        if folder.is_dir():
            os.utime(folder)
            return
        folder.mkdir(parents=True, mode=0o700)
        write_whole(folder / "environment.txt", ("\n".join(environment) + "\n").encode())
        for other in folder.parent.iterdir():
            if (other / "environment.txt").is_file() and time.time() - other.stat().st_mtime > _MAX_AGE:
                shutil.rmtree(other, ignore_errors=True)
