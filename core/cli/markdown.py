"""Markdown for a terminal: formatted where nothing of the text gets lost, safe, and cut into blocks while it grows.

A model's text is somebody else's: what a terminal would obey is shown as an escape, also where Markdown spells it
(``&#27;``). What Markdown would hide (HTML, images, the targets of references) is shown as it is written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from core.cli.terminal import clean_prose

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import Markdown, MarkdownContext
    from rich.segment import Segment

_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_ENTITY = re.compile(r"&#?\w+;")


class SafeMarkdown:
    """Markdown with its line ends kept, all its letters, and nothing that a terminal obeys: no links, no controls.

    A text of which letters would be missing (a table with more cells than columns, lists deeper than the screen is
    wide) is shown as it is written.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment
        from rich.text import Text

        markdown = _renderer()("", code_theme="ansi_dark", hyperlinks=False)
        markdown.parsed = _parser().parse(_with_line_ends(self._text))
        lines = [list(_safe(line)) for line in Segment.split_lines(console.render(markdown, options))]
        shown = "".join(segment.text for line in lines for segment in line)
        if _letters(self._text) - _letters(shown) - _languages(markdown.parsed):
            yield Text(clean_prose(self._text).strip("\n"), overflow="fold")
            return
        for line in lines:
            yield from line
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


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return parser.disable(["image", "reference"])


@cache
def _renderer() -> type[Markdown]:
    from rich.markdown import Markdown, TableDataElement

    class Cell(TableDataElement):
        """A cell of a table, in which a long word goes on in the next line; rich's own cuts it."""

        def on_enter(self, context: MarkdownContext) -> None:
            self.content.overflow = "fold"

    class Renderer(Markdown):
        elements = Markdown.elements | {"td_open": Cell, "th_open": Cell}

    return Renderer


def _safe(line: Sequence[Segment]) -> Iterator[Segment]:
    """A line without what a terminal obeys, and without padding up to its width, which would be copied with it."""
    from rich.segment import Segment

    words = [segment for segment in line if segment.control is None]
    while words and not words[-1].text.strip():
        words.pop()
    for place, (text, style, _) in enumerate(words, start=1):
        if style is not None and style.link:
            style = style.update_link(None)
        text = clean_prose(text)
        yield Segment(text.rstrip() if place == len(words) else text, style)


def _letters(text: str) -> Counter[str]:
    """How often each letter is in a text. Digits may differ: Markdown counts the items of a list itself."""
    return Counter(filter(str.isalpha, _ENTITY.sub("", text)))


def _languages(tokens: Sequence[Token]) -> Counter[str]:
    """The letters of the languages that fences name, which choose the colours and are not shown."""
    return Counter("".join(token.info.split(" ")[0] for token in tokens if token.type == "fence"))


def _with_line_ends(text: str) -> str:
    """Line ends within a paragraph as Markdown's hard ones: a model's lines are meant as lines."""
    lines, fenced = text.split("\n"), False
    for place, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced and line.strip():
            lines[place] = line + "  "
    return "\n".join(lines)
