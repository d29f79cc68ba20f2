"""Puts a fast library of matrix products under MLX, once for a process, or says why it does not.

MLX's package for CPUs on Linux brings the reference BLAS, which computes some fifty times more slowly than the
processor could. MLX calls three of its functions through slots in the memory of its own library, ``libmlx.so``, that
the dynamic linker fills. These slots are given the addresses of another library's functions, whether they are filled
already or not. Nothing else in the process sees that library: numpy and torch keep what they have.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from pathlib import Path

from core.blas.imports import Imports
from core.blas.library import PACKAGE, Library, LibraryError, load, packaged
from core.blas.memory import Memory, MemoryDoubtError
from core.blas.product import FUNCTIONS
from core.blas.status import Status, own
from core.cores import asked_threads, usable_cores
from core.errors import UsageError

VARIABLE = "CORE_BLAS"
_INSTALL = f'Install it: pip install "corelm[cpu]", or pip install {PACKAGE}'
_GPU_LIBRARIES = ("libcu", "libnv", "libnccl")

_lock = threading.Lock()
_status: Status | None = None
_refused: str | None = None  # why CORE_BLAS cannot be honoured
_before: dict[int, int] = {}  # slot → what the dynamic linker, or nobody yet, has filled it with
_concerned = False  # MLX computes on a CPU of Linux
_checked = False


def bind() -> Status:
    """Puts the library under MLX where that is possible. Never raises; later calls return the first one's status."""
    global _status
    with _lock:
        if _status is None:
            try:
                _status = _bind(os.environ.get(VARIABLE, "").strip())
            except Exception as error:  # an import must not fail for want of speed
                _status = own(f"no other can be put in its place ({type(error).__name__}: {error})")
        return _status


def status() -> Status | None:
    """The library that multiplies for MLX, bound now if it is not yet; None where MLX does not compute on a CPU of
    Linux, and this is no question.
    """
    found = bind()
    return found if _concerned else None


def check_setting() -> None:
    """Binds the library if that is not done yet.

    Raises:
        UsageError: ``CORE_BLAS`` asks for a library that cannot be used.
    """
    bind()
    if _refused is not None:
        raise UsageError(
            f"the environment variable {VARIABLE} names no library that can be used",
            found=_refused,
            hint=f"{VARIABLE} is off, for MLX's own library, or the path of one that exports cblas_sgemm.",
        )


def check() -> None:
    """To be called before MLX computes. The first call multiplies through MLX; where the product is wrong, MLX gets its
    own library back, with a warning.

    Raises:
        UsageError: as ``check_setting``.
    """
    global _checked
    check_setting()
    found = bind()
    if _checked or not found.used:
        return
    _checked = True
    from core.blas.measure import is_right

    if not is_right():
        unbind(f"MLX computes wrong products with {found.path}")
        warnings.warn(
            f"MLX computes wrong products with {found.path}, and goes on with its own library, which is slow. "
            f"{VARIABLE}=off leaves it out from the beginning.",
            RuntimeWarning,
            stacklevel=2,
        )


def unbind(reason: str) -> None:
    """Gives MLX its own library back."""
    global _status
    with _lock:
        memory = Memory()
        for slot, address in _before.items():
            memory.write_pointer(slot, address)
        _before.clear()
        _status = own(reason)


def _bind(setting: str) -> Status:
    global _concerned
    if sys.platform != "linux" or sys.byteorder != "little" or sys.maxsize < 2**32:
        return own("this is not Linux on a processor of 64 bits")
    if not _has_glibc():
        return own("this system is without the GNU C library")
    memory = Memory()
    libraries = memory.files("libmlx.so")
    if len(libraries) != 1:
        return own(f"{len(libraries) or 'none'} of MLX's library libmlx.so are loaded")
    (path,) = libraries
    imports = Imports(path, memory)
    if any(name.startswith(_GPU_LIBRARIES) for name in imports.libraries) or _has_gpu():
        return own("MLX computes on a GPU")
    _concerned = True
    if setting.lower() == "off":
        return own(f"the environment variable {VARIABLE} is off")
    slots = imports.slots(FUNCTIONS)
    if "cblas_sgemm" not in slots.values():
        return own("it does not call cblas_sgemm of another library")
    for slot in slots:
        if not memory.is_code(memory.read_pointer(slot)):
            raise MemoryDoubtError(f"what lies at {slot:#x} is not the address of a function")
    library = _library(setting)
    return library if isinstance(library, Status) else _write(library, slots, memory)


def _library(setting: str) -> Library | Status:
    """The library that the user, or else the package, has; or why there is none."""
    global _refused
    file = Path(setting).absolute() if setting else packaged()
    if file is None:
        return own(f"the package {PACKAGE} is not installed", _INSTALL)
    try:
        if setting and not file.is_file():
            raise LibraryError(f"{setting} is no file")
        return load(file, _threads())
    except LibraryError as error:
        if setting:
            _refused = str(error)
            return own(f"the environment variable {VARIABLE} names no library that can be used: {error}")
        return own(str(error), f"Install {PACKAGE} again: pip install --force-reinstall {PACKAGE}")


def _threads() -> int:
    """OpenBLAS's own variable comes before the one that all libraries share, as OpenBLAS has it."""
    own_variable = "OPENBLAS_NUM_THREADS"
    return usable_cores() if asked_threads(own_variable) is None else usable_cores(own_variable)


def _write(library: Library, slots: dict[int, str], memory: Memory) -> Status:
    try:
        for slot, name in slots.items():
            old = memory.read_pointer(slot)
            memory.write_pointer(slot, library.functions[name])
            _before[slot] = old
    except MemoryDoubtError:
        for slot, address in _before.items():
            memory.write_pointer(slot, address)
        _before.clear()
        raise
    return Status(True, library.name, library.path, library.threads)


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (OSError, ValueError):
        return False


def _has_gpu() -> bool:
    import mlx.core as mx

    return bool(mx.cuda.is_available() or mx.metal.is_available())
