"""The block of an answer that is being written: text at the bottom of a terminal, drawn anew until it is finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_UP, _CLEAR_ROW = "\x1b[1A", "\x1b[2K"
_ECHO = len("^C")  # what a terminal shows behind the last row, and would wrap, when the answer is stopped
_WRAP, _NO_WRAP = "\x1b[?7h", "\x1b[?7l"


class Draft:
    """Rows that can be taken away again.

    A terminal takes back only what has not left its screen. So no more rows are drawn than it has, the last ones, cut
    to its width here and not there: a terminal may find a character wider than we do. One that is made narrower while
    a draft is drawn may leave a part of it behind; nothing that was finished is ever taken away.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows = 0

    def draw(self, text: str) -> None:
        """Shows the end of ``text`` in place of what was drawn before."""
        rows = self._wrapped(text)
        codes = self._taken_away() + _NO_WRAP + "\n".join(rows) + _WRAP
        self._rows = min(self._rows, len(rows))  # if Ctrl-C comes now, rather too few are taken away than too many
        self._send(codes)
        self._rows = len(rows)

    def clear(self) -> None:
        """Takes away what was drawn; the next text begins where it began."""
        if self._rows:
            self._send(self._taken_away() + _WRAP)
            self._rows = 0

    def _taken_away(self) -> str:
        return f"\r{_CLEAR_ROW}" + (_UP + _CLEAR_ROW) * (self._rows - 1) if self._rows else ""

    def _wrapped(self, text: str) -> list[str]:
        from rich.text import Text

        width, height = self._console.size
        room = max(1, height - 2)
        rows: list[str] = []
        for line in reversed(text.split("\n")[-room:]):
            parts = Text(line).wrap(self._console, max(1, width - _ECHO), overflow="fold") if line else [Text()]
            rows[:0] = [part.plain.rstrip() for part in parts]
            if len(rows) >= room:
                break
        return rows[-room:]

    def _send(self, codes: str) -> None:
        self._console.file.write(codes)
        self._console.file.flush()
