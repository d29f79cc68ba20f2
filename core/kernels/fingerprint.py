"""Digests of Python functions: equal in every process that runs the same code."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any

from core.kernels.cuda_code import digest


def fingerprint(function: Callable[..., Any] | CodeType) -> str:
    """A digest of a function's own code, and of the functions that are defined in it; not of what it calls.

    A callable without code of its own, such as a partial function, has another fingerprint in every process.
    """
    code = function if isinstance(function, CodeType) else getattr(function, "__code__", None)
    return digest(repr(function)) if code is None else digest(*_parts(code))


def _parts(code: CodeType) -> list[str]:
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    shape = (code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    return [code.co_code.hex(), code.co_exceptiontable.hex(), repr(names), repr(shape), _constant(code.co_consts)]


def _constant(value: Any) -> str:
    """A constant's text. A set's own text has another order in every process; a code's own text has an address."""
    if isinstance(value, CodeType):
        return fingerprint(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))},)"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return repr(value)
