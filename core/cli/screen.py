"""Where answers are shown: Markdown on a terminal, plain text in a pipe."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from core.cli.draft import Draft
from core.cli.markdown import SafeMarkdown, end_of_block
from core.cli.terminal import clean_prose, is_terminal

if TYPE_CHECKING:
    from rich.console import Console

_INTERVAL = 0.05  # seconds between two drawings of an unfinished paragraph


class Screen(Protocol):
    """What shows one answer after another."""

    def add(self, text: str) -> None:
        """Shows the next piece of an answer."""

    def finish(self) -> None:
        """Ends the answer, and its line."""


def open_screen(*, plain: bool) -> Screen:
    """The screen for stdout; plain where nobody watches, where a terminal can do no better, or on request."""
    if not is_terminal(sys.stdout):
        return PlainScreen(str)
    if not plain:
        from rich.console import Console

        console = Console()
        if console.is_terminal and not console.is_dumb_terminal:
            return MarkdownScreen(console)
    return PlainScreen(clean_prose)


class PlainScreen:
    """Text as it comes, and a line end after each answer.

    Args:
        shown: what is printed of a text.
    """

    def __init__(self, shown: Any) -> None:
        self._shown = shown

    def add(self, text: str) -> None:
        print(self._shown(text), end="", flush=True)

    def finish(self) -> None:
        print(flush=True)


class MarkdownScreen:
    """Finished paragraphs as Markdown; the one that is being written as text, until it is finished.

    Every paragraph is rendered once, however long an answer gets.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._draft = Draft(console)
        self._text = ""
        self._begun = False
        self._drawn = 0.0

    def add(self, text: str) -> None:
        at_line = self._text.endswith("\n")
        self._text += clean_prose(text)
        end = end_of_block(self._text) if at_line or "\n" in text else 0  # nothing ends within a line
        while end:
            block, self._text = self._text[:end], self._text[end:]
            self._render(block)
            end = end_of_block(self._text)
        if time.monotonic() - self._drawn >= _INTERVAL:
            self._draft.draw(self._text)
            self._drawn = time.monotonic()

    def finish(self) -> None:
        if self._text.strip():
            self._render(self._text)
        self._draft.clear()
        self._text, self._begun = "", False

    def _render(self, block: str) -> None:
        self._draft.clear()
        if self._begun:
            self._console.print()
        self._begun = True
        self._console.print(SafeMarkdown(block))
