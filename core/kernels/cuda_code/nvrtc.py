"""Compiles CUDA text to machine code with NVRTC, the compiler library that MLX's CUDA packages bring.

Reference: https://docs.nvidia.com/cuda/nvrtc/. Six of its functions are called through ctypes, which lets other threads
run meanwhile; NVRTC itself compiles several programs at a time.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

_LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


class CompileError(Exception):
    """NVRTC is absent, or refuses a text; the message is its log."""


class Code(NamedTuple):
    """Machine code of one kernel.

    Attributes:
        cubin: an ELF image for one compute capability.
        symbol: the kernel's name in it.
    """

    cubin: bytes
    symbol: str


def version() -> str:
    """NVRTC's version, such as ``13.0``.

    Raises:
        CompileError: NVRTC is absent.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return f"{major.value}.{minor.value}"


def compile_kernel(text: str, kernel: str, architecture: str, include: Sequence[str]) -> Code:
    """Compiles one kernel.

    Args:
        text: the whole program.
        kernel: the kernel's qualified name in it.
        architecture: such as ``sm_90a``.
        include: folders with headers.

    Raises:
        CompileError: NVRTC is absent, or the text does not compile.
    """
    library = _library()
    program = ctypes.c_void_p()
    name = kernel.encode()
    _check(
        library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None),
        "nvrtcCreateProgram",
    )
    try:
        _check(library.nvrtcAddNameExpression(program, name), "nvrtcAddNameExpression")
        options = [
            f"--gpu-architecture={architecture}",
            "--device-as-default-execution-space",  # as MLX compiles
            *(f"--include-path={folder}" for folder in include),
        ]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), array):
            raise CompileError(_read(program, "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace").strip())
        symbol = ctypes.c_char_p()
        _check(library.nvrtcGetLoweredName(program, name, ctypes.byref(symbol)), "nvrtcGetLoweredName")
        assert symbol.value is not None
        return Code(_read(program, "nvrtcGetCUBIN"), symbol.value.decode())
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    """What one of the pairs of functions ``what`` and ``whatSize`` gives."""
    size = ctypes.c_size_t()
    _check(getattr(_library(), what + "Size")(program, ctypes.byref(size)), what + "Size")
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), what)(program, buffer), what)
    return buffer.raw


def _check(result: int, what: str) -> None:
    if result:
        raise CompileError(f"{what} failed with error {result}")


@functools.cache
def _library() -> Any:
    """The library that MLX has loaded into this process, or another of that name."""
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CompileError(f"none of {', '.join(_LIBRARIES)} can be loaded")
