"""What somebody types, or pipes: messages and commands, of one line or several.

A line is a message. A line that ends with a backslash goes on in the next. Three double quotes begin and end a message
of several lines. A line that begins with ``/`` is a command, with ``//`` a message that begins with ``/``.

A paste of several lines is one message where the line editor can tell (GNU readline's bracketed paste). None of these
signs counts in it; but quotes around a whole paste are taken off, so that a message can be copied as it was typed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

from core.cli.sources import decoded
from core.cli.terminal import is_terminal
from core.errors import UsageError

_PROMPT, _MORE, _QUOTES = "> ", "... ", '"""'

NextLine = Callable[[str], str]
"""The next line without its end, asked for with a prompt; raises EOFError where there is none."""


@dataclass(frozen=True)
class Said:
    """A message or a command.

    Attributes:
        text: a message's text; a command's words without the ``/``.
    """

    text: str
    is_command: bool = False


def next_said(line: NextLine) -> Said:
    """The next message or command; empty lines are none.

    Raises:
        EOFError: there is none.
        UsageError: the end came within a message.
    """
    while True:
        first = line(_PROMPT)
        if first.strip():
            break
    if "\n" in first:
        return Said(_pasted(first))
    if first.lstrip().startswith(_QUOTES) and not _closes_within(first):
        return Said(_quoted(first.lstrip().removeprefix(_QUOTES), line))
    if first.startswith("/") and not first.startswith("//"):
        return Said(first[1:].strip(), is_command=True)
    lines = [first[1:] if first.startswith("//") else first]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_following(line))
    return Said("\n".join(lines))


def _pasted(text: str) -> str:
    """The message in a paste of several lines: all of it, with no sign in it but quotes around the whole."""
    inner = text.strip()
    if inner.count(_QUOTES) == 2 and inner.startswith(_QUOTES) and inner.endswith(_QUOTES):
        return _without_empty_ends(inner.removeprefix(_QUOTES).removesuffix(_QUOTES).split("\n"))
    return text


def _closes_within(first: str) -> bool:
    """Whether quotes that begin a line end before its end does, so that they quote no lines."""
    return _QUOTES in first.lstrip().removeprefix(_QUOTES) and not first.rstrip().endswith(_QUOTES)


def _quoted(first: str, line: NextLine) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(_QUOTES):
        lines.append(_following(line))
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
    return _without_empty_ends(lines)


def _without_empty_ends(lines: list[str]) -> str:
    """Lines between quotes, which may stand on lines of their own."""
    if not lines[0].strip():
        lines = lines[1:]
    if lines and not lines[-1].strip():
        lines = lines[:-1]
    return "\n".join(lines)


def _following(line: NextLine) -> str:
    try:
        return line(_MORE)
    except EOFError:
        raise UsageError(
            "the input ends within a message", hint=f"A message that {_QUOTES} begins ends with it."
        ) from None


def typed_line() -> NextLine:
    """Lines from a keyboard, edited with readline where Python has it, with a history of this session."""
    with contextlib.suppress(ImportError):
        import readline

        if "libedit" not in (readline.__doc__ or ""):
            readline.parse_and_bind("set enable-bracketed-paste on")
    if is_terminal(sys.stdout):
        return input

    def line(prompt: str) -> str:
        print(prompt, end="", file=sys.stderr, flush=True)  # stdout has the answers, and nothing else
        read = sys.stdin.readline()
        if not read:
            raise EOFError
        return read.removesuffix("\n")

    return line


def piped_line() -> NextLine:
    """Lines from a file or a program, in UTF-8."""

    def line(prompt: str) -> str:
        data = sys.stdin.buffer.readline()
        if not data:
            raise EOFError
        return decoded(data, "a line on stdin")

    return line
