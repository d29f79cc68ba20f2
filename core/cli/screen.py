"""Where answers are shown: Markdown on a terminal, plain text in a pipe.

Knows streams and characters; knows no models. A model's text is somebody else's: what a terminal would obey is shown as
an escape, also where Markdown spells it (``&#27;``).
"""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from core.cli.terminal import clean_prose, is_terminal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_FENCE = re.compile(r" {0,3}(```+|~~~+)")
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
        self._text = ""
        self._begun = False
        self._live: Any = None
        self._drawn = 0.0

    def add(self, text: str) -> None:
        at_line = self._text.endswith("\n")
        self._text += clean_prose(text)
        end = end_of_block(self._text) if at_line or "\n" in text else 0  # nothing ends within a line
        while end:
            block, self._text = self._text[:end], self._text[end:]
            self._draw(now=True)  # what is printed appears above what is drawn
            self._render(block)
            end = end_of_block(self._text)
        self._draw()

    def finish(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._text.strip():
            self._render(self._text)
        self._text, self._begun = "", False

    def _draw(self, *, now: bool = False) -> None:
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        if now or time.monotonic() - self._drawn >= _INTERVAL:
            self._drawn = time.monotonic()
            lines = self._text.split("\n")[-max(1, self._console.height - 2) :]
            self._live.update(Text("\n".join(lines)), refresh=True)

    def _render(self, block: str) -> None:
        if self._begun:
            self._console.print()
        self._begun = True
        self._console.print(SafeMarkdown(block))


class SafeMarkdown:
    """Markdown with its line ends kept, and with nothing that a terminal obeys: no links, no control characters."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.markdown import Markdown
        from rich.segment import Segment

        markdown = Markdown(_with_line_ends(self._text), code_theme="ansi_dark", hyperlinks=False)
        for line in Segment.split_lines(console.render(markdown, options)):
            words = [segment for segment in line if segment.control is None]
            while words and not words[-1].text.strip():
                words.pop()  # padding up to the terminal's width, which would be copied with the text
            for place, (text, style, _) in enumerate(words, start=1):
                if style is not None and style.link:
                    style = style.update_link(None)
                text = clean_prose(text)
                yield Segment(text.rstrip() if place == len(words) else text, style)
            yield Segment.line()


def end_of_block(text: str) -> int:
    """Where the first finished block of Markdown ends in a text that grows; 0 while none is certain to be finished.

    A block ends with an empty line outside a fence, once the next line has begun and is not indented, which would make
    it a part of a list's item.
    """
    fence, place, empty = "", 0, False
    for line in text.splitlines(keepends=True):
        if not fence and empty and line.strip():
            if text[:place].strip() and line[0] not in " \t":
                return place
            empty = False
        match = _FENCE.match(line)
        if match:
            if not fence:
                fence = match[1]
            elif match[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        empty = not fence and not line.strip()
        place += len(line)
    return 0


def _with_line_ends(text: str) -> str:
    """Line ends within a paragraph as Markdown's hard ones: a model's lines are meant as lines."""
    lines, fenced = text.split("\n"), False
    for place, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced and line.strip():
            lines[place] = line + "  "
    return "\n".join(lines)
