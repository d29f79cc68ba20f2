"""Text for people: made safe for a terminal, laid out in columns, written to stdout or stderr.

Names and texts of a checkpoint are somebody else's, and a terminal obeys control characters: everything that is printed
goes through here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_INDENT = "  "


def clean(text: object) -> str:
    """One line of ``text``: what is not printable (control and format characters, line ends) is shown as an escape."""
    shown = str(text)
    return shown if shown.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in shown)


def clean_prose(text: str) -> str:
    """Running text with its lines and tabs, its joined emoji and its directions, but nothing that a terminal obeys."""
    return _CONTROL.sub(lambda match: _escape(match.group()), text)


def cell(text: object) -> str:
    """A table's cell: one word, so that the columns of a table can be cut apart at white space; ``-`` when empty."""
    return clean(text).replace(" ", r"\x20") or "-"


def fold(label: str, message: str) -> str:
    """A message of a few lines: the first after its label, the others indented, so that none poses as another."""
    first, *rest = message.split("\n")
    lines = [f"{label}{clean(first)}", *(f"{_INDENT}{clean(line.strip())}" for line in rest if line.strip())]
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def size(count: int) -> str:
    """A number of bytes, as people read it: ``13.50 GiB``."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.2f} {units[0]}" if units[0] != "B" else f"{count} B"


def put(lines: str | Iterable[str]) -> None:
    """Prints lines on stdout."""
    print(lines if isinstance(lines, str) else "\n".join(lines))


def put_json(value: Any) -> None:
    """Prints one JSON document on stdout, in ASCII: no character of it can mean anything to a terminal."""
    print(json.dumps(value, indent=2, ensure_ascii=True))


def say(text: str) -> None:
    """Prints on stderr, if there is one."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def is_terminal(stream: Any) -> bool:
    """Whether a person watches the stream."""
    return stream is not None and stream.isatty()


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
