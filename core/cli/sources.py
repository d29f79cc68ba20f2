"""Text from files and from stdin."""

from __future__ import annotations

import os
import select
import stat
import sys
from pathlib import Path

from core.cli.terminal import say
from core.errors import UsageError

_LIMIT = 256_000_000  # bytes of a file
_NOTE_AFTER, _PATIENCE = 1.0, 20.0  # seconds for which nothing comes through a pipe


def piped_text(*, needed: bool = True) -> str | None:
    """The text that a pipe, a socket or a file on stdin holds; None where it is empty, and for terminals and devices.

    Args:
        needed: nothing can be done without it, so that it is waited for without end. Otherwise a pipe in which nothing
            comes for some time is left alone: programs that start others often leave them one that nobody writes to.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        mode = 0 if sys.stdin is None else os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no real file
        return None
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)):
        return None
    if not needed and not _begins():
        return None
    return read_stdin() or None


def _begins() -> bool:
    """Whether something comes on stdin, or its end, before patience does."""
    if _is_ready(_NOTE_AFTER):
        return True
    say(f"note: nothing has come on stdin yet; it has {_PATIENCE:.0f} seconds (</dev/null says that nothing will)")
    if _is_ready(_PATIENCE):
        return True
    say("warning: nothing has come on stdin, and the prompt is answered alone")
    return False


def _is_ready(seconds: float) -> bool:
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def read_stdin() -> str:
    """All of stdin as text, without the line end that ends it."""
    if sys.stdin is None:
        raise UsageError("the prompt is to be read from stdin, which is closed")
    return decoded(sys.stdin.buffer.read(), "the text on stdin")


def read_file(path: str) -> str:
    """A file as text, without the line end that ends it."""
    with Path(path).open("rb") as file:
        data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:  # a device may have no end
        raise UsageError(f"{path} is too large for a prompt or a template", expected=f"at most {_LIMIT:,} bytes")
    return decoded(data, f"the prompt in {path}")


def decoded(data: bytes, what: str) -> str:
    """``data`` as text, without the line end that ends it.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not UTF-8", found=f"byte {data[error.start]:#04x}") from None
    return text.removesuffix("\n").removesuffix("\r")
