"""Parses a JSON object from an untrusted file, with bounds on its size, number of values and nesting.

Configs, indexes and safetensors headers are all parsed here. Errors say in which way the file is broken.
"""

from __future__ import annotations

import json
import re
from typing import NoReturn

from core.errors import CoreError

MAX_VALUES = 4_000_000
"""Values in one document. A parsed value takes at most about 100 bytes, so this bounds memory to some 400 MB. A
tensor's entry in a header has fewer than 12 values, and the largest public checkpoints have about 200,000 tensors in
all."""

MAX_DEPTH = 64
"""Nesting of one document, within one level. The bound protects recursive code that reads the result."""

LFS_PREFIX = b"version https://git-lfs.github.com/spec/"
LFS_PROBLEM = "is a git-LFS pointer, not the file itself"
LFS_HINT = "run `git lfs pull` in the repository, or download the file from the hub"

# Matches one of: a whole object of scalars and lists of numbers (a header describes each tensor so), a string (closed
# or not), or one of the characters that structure a document. Repeats are possessive, so there is no backtracking: the
# scan is linear, and a string of 100 MB costs no memory.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+'
_FLAT = rb'\{(?:[^"\[\]{}]++|' + _STRING + rb'"|\[[^"\[\]{}]*+\])*+\}'
_OPEN_OBJECT, _COMMA = b"{,"
_TOKEN = re.compile(_FLAT + rb"|" + _STRING + rb'"?|[\[\]{},]', re.DOTALL)


def parse_object(
    data: bytes, *, where: str, error: type[CoreError], part: str = "", unique_keys: bool = False
) -> dict[str, object]:
    """The JSON object in `data`, UTF-8 encoded.

    Args:
        data: the text of the object.
        where: how an error names the file.
        error: the class of the error raised.
        part: which part of the file `data` is (``"header"``), when it is not the whole file.
        unique_keys: whether a key given twice in one object is an error; otherwise the last one wins, as usual.

    Raises:
        error: a git-LFS pointer; not UTF-8; not JSON (with line and column); not an object; nested deeper than
            `MAX_DEPTH`; more than `MAX_VALUES` values.
    """
    if data.startswith(LFS_PREFIX):
        raise error(LFS_PROBLEM, where=where, hint=LFS_HINT)
    of = f"its {part} " if part else ""
    _check_bounds(data, of, where, error)
    text = decode(data, where=where, error=error, part=part)
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique_keys else None)
    except json.JSONDecodeError as exc:
        if not text.strip():
            raise error(f"{of}is empty", where=where, expected="a JSON object") from None
        problem = f"{of}is not valid JSON at line {exc.lineno}, column {exc.colno}: {exc.msg}"
        raise error(problem, where=where, hint="restore the file, or correct it at that place") from None
    except RecursionError:
        _too_deep(of, where, error)
    except _DuplicateKeyError as exc:
        raise error(f"{of}has the key {shown(exc.key)} twice in one object", where=where) from None
    except ValueError as exc:  # an integer of thousands of digits, which int() refuses
        raise error(f"{of}has a number that no reader accepts: {exc}", where=where) from None
    if not isinstance(value, dict):
        raise error(f"{of}is not a JSON object", where=where, expected="{...}", found=shown(value))
    return value


def decode(data: bytes, *, where: str, error: type[CoreError], part: str = "") -> str:
    """`data` as text. Raises `error`, which names the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        problem = f"its {part} is not UTF-8 text" if part else "is not UTF-8 text"
        raise error(problem, where=where, found=f"byte 0x{data[exc.start]:02x} at {exc.start:,}") from None


def shown(value: object, limit: int = 80) -> str:
    """A value from a file, for an error message: on one line and clipped. It does not recurse into objects."""
    if isinstance(value, dict):
        return f"an object of {len(value):,} keys"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return quoted(value, limit)
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def quoted(text: str, limit: int = 80) -> str:
    """`text` in quotes, clipped to `limit` characters; unprintable characters (lone surrogates too) are escaped."""
    shown = repr(text[:limit])
    return shown if len(text) <= limit else f"{shown[:-1]}…{shown[-1]}"


def _check_bounds(data: bytes, of: str, where: str, error: type[CoreError]) -> None:
    """Refuses a document that is too large or too deep, before anything is built from it.

    Counts of brackets and commas in the raw bytes are upper bounds. Only a document that exceeds them (a long one, or
    one with brackets inside strings) is scanned token by token, up to the first bound crossed.
    """
    opening = data.count(b"{") + data.count(b"[")
    if opening <= MAX_DEPTH and opening + data.count(b",") <= MAX_VALUES:
        return
    values = depth = 0
    for token in _TOKEN.finditer(data):
        start, stop = token.span()
        char = data[start]
        level = depth
        if (
            char == _OPEN_OBJECT and stop - start > 1
        ):  # a flat object; commas inside its strings count too, which no real file exceeds
            values += 1 + data.count(b"[", start, stop) + data.count(b",", start, stop)
            level = depth + 1
        elif char in b"{[":
            values += 1
            level = depth = depth + 1
        elif char in b"}]":
            depth -= 1
        elif char == _COMMA:
            values += 1
        if level > MAX_DEPTH:
            _too_deep(of, where, error)
        if values > MAX_VALUES:
            raise error(f"{of}holds more values than any model file", where=where, expected=f"at most {MAX_VALUES:,}")


def _too_deep(of: str, where: str, error: type[CoreError]) -> NoReturn:
    raise error(f"{of}is nested too deeply", where=where, expected=f"at most {MAX_DEPTH} levels") from None


class _DuplicateKeyError(Exception):
    def __init__(self, key: str) -> None:
        self.key = key


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return mapping
