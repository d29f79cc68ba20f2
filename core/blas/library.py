"""A library of matrix products: where it is found, how it is loaded, and a proof that it multiplies right."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.blas.product import FUNCTIONS, multiplies

PACKAGE = "scipy-openblas32"
_MODULE = "scipy_openblas32"
_PREFIXES = ("scipy_", "")
_LOADED_ONLY = 4  # RTLD_NOLOAD


class LibraryError(Exception):
    """A library is absent, cannot be loaded, lacks a function or multiplies wrongly."""


@dataclass(frozen=True)
class Library:
    """A loaded library.

    Attributes:
        path: its file.
        name: what it calls itself, or the file's name.
        functions: addresses of ``cblas_sgemm``, ``cblas_dgemm`` and ``cblas_cgemm``.
        threads: how many it computes with; None where it does not say.
    """

    path: str
    name: str
    functions: dict[str, int]
    threads: int | None


def packaged() -> Path | None:
    """The library in the package ``scipy-openblas32``; None where that is not installed. Imports nothing of it."""
    spec = importlib.util.find_spec(_MODULE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder, "lib").glob("libscipy_openblas*.so*")):
            return file
    return None


def load(path: Path, threads: int) -> Library:
    """Loads a library for this process's use alone, proves its products, and sets the number of its threads.

    A library that was loaded before belongs to somebody else, too: it keeps its number of threads.

    Raises:
        LibraryError: it cannot be loaded, lacks a function, or its products are wrong.
    """
    shared = _is_loaded(path)
    try:
        with _one_core():
            library = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        raise LibraryError(f"{path} cannot be loaded: {error}") from None
    prefix = next((each for each in _PREFIXES if hasattr(library, f"{each}cblas_sgemm")), None)
    if prefix is None:
        raise LibraryError(f"{path} has no function cblas_sgemm")
    functions = {}
    for name in FUNCTIONS:
        try:
            function = library[prefix + name]
        except AttributeError:
            raise LibraryError(f"{path} has no function {name}") from None
        if not multiplies(name, function):
            raise LibraryError(f"{path}: {name} computes a wrong product")
        functions[name] = ctypes.cast(function, ctypes.c_void_p).value or 0
    if not shared:
        _call(library, f"{prefix}openblas_set_num_threads", threads, result=None)
    return Library(
        str(path),
        _name(_call(library, f"{prefix}openblas_get_config", result=ctypes.c_char_p), path),
        functions,
        _call(library, f"{prefix}openblas_get_num_threads", result=ctypes.c_int),
    )


def _is_loaded(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path), mode=_LOADED_ONLY)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """OpenBLAS starts a thread for each core that it sees when it is loaded, though fewer may run at once, and these
    spin for a while. It sees what the loading thread may use; no other thread is held back.
    """
    try:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _call(library: ctypes.CDLL, name: str, *arguments: int, result: Any) -> Any:
    """What a function returns; None where the library has no such function."""
    function = getattr(library, name, None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int,) * len(arguments)
    function.restype = result
    return function(*arguments)


def _name(config: bytes | None, path: Path) -> str:
    """``OpenBLAS 0.3.34 (SkylakeX)``, from what OpenBLAS says of how it was made and which processor it has found."""
    words = (config or b"").decode(errors="replace").split()
    if len(words) < 2 or words[0] != "OpenBLAS":
        return path.name
    options = ("DYNAMIC_ARCH", "NO_", "USE", "MAX_THREADS", "SINGLE", "DYNAMIC", "CONSISTENT")
    kind = [word for word in words[2:] if not word.startswith(options) and re.fullmatch(r"\w+", word)]
    return f"OpenBLAS {words[1]}" + (f" ({kind[-1]})" if kind else "")
