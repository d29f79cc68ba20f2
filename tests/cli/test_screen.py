"""What an answer looks like: Markdown by paragraphs, nothing that a terminal obeys, every paragraph once."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from core.cli.screen import MarkdownScreen, SafeMarkdown, end_of_block

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_OWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # what rich itself sends: colours, the cursor


def rendered(text: str, width: int = 60) -> str:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, color_system="truecolor", legacy_windows=False
    )
    console.print(SafeMarkdown(text))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


HOSTILE = [
    "a &#27;]0;title&#7; b",
    "a &#x9b;31m b",
    "[a](http://x/\x1b]0;t\x07)",
    "[a](<http://x/&#27;]0;t>)",
    "![a](http://x/&#x1b;c)",
    "```\n\x1b[2J\n```",
    "`\x9b2J`",
    "<http://x/\x1b[2J>",
    "| a\x1b[2J | b |\n|---|---|\n| c | \x07 |",
    "# \x1bc",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_is_obeyed(text: str) -> None:
    shown = rendered(text)
    assert "\x1b]" not in shown
    assert not _CONTROL.search(_OWN.sub("", shown).replace("\n", ""))
    colours = re.findall(r"\x1b\[[0-9;?]*[A-Za-z]", shown)
    assert all(colour.endswith("m") for colour in colours)


@given(st.text(st.sampled_from("a*_`[]()<>&#;\x1b\x9b\x07|-\n 0127x!"), max_size=60))
def test_nothing_is_obeyed_whatever_is_said(text: str) -> None:
    assert not _CONTROL.search(_OWN.sub("", rendered(text)).replace("\n", ""))


def test_lines_stay_lines() -> None:
    """Also where Markdown would join them; and no line is filled with spaces that would be copied with it."""
    shown = _OWN.sub("", rendered("KING:\nI will **not**.\nNo.\n")).split("\n")
    assert shown[:3] == ["KING:", "I will not.", "No."]


def test_bold_and_code() -> None:
    assert "\x1b[1mnot\x1b[0m" in rendered("I will **not**.")
    assert "**" not in rendered("I will **not**.")
    assert "x = 1" in _OWN.sub("", rendered("```python\nx = 1\n\ny = 2\n```"))


BLOCKS = {
    "one": ("A line\nand another\n\nNext", "A line\nand another\n\n"),
    "unfinished": ("A line\nand", ""),
    "the next line may be indented": ("- a\n\n", ""),
    "an item goes on": ("- a\n\n  more\n\nNext", "- a\n\n  more\n\n"),
    "a fence": ("```\na\n\nb\n", ""),
    "a fence that ended": ("```\na\n\nb\n```\n\nNext", "```\na\n\nb\n```\n\n"),
    "a fence within a longer one": ("````\n```\n\na\n````\n\nb", "````\n```\n\na\n````\n\n"),
    "another kind of fence": ("~~~\n```\n\na\n~~~\n\nb", "~~~\n```\n\na\n~~~\n\n"),
    "empty lines first": ("\n\nA", ""),
    "empty lines, then a block": ("\n\nA\n\nB", "\n\nA\n\n"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_where_a_block_ends(name: str) -> None:
    text, block = BLOCKS[name]
    assert text[: end_of_block(text)] == block


def final(screen: str) -> list[str]:
    """What a terminal shows in the end: a line that was drawn and taken away again is not there."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", screen):
        if part == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part.endswith("A") and part.startswith("\x1b["):
            row -= int(part[2:-1] or 1)
        elif part and part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return lines


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_an_answer_in_any_pieces_looks_the_same(sizes: list[int]) -> None:
    text = "Dear **friend**,\nhello.\n\n```\na\n\nb\n```\n\n1. one\n\n2. two\n\nEnd"
    console = Console(file=io.StringIO(), force_terminal=True, width=40, height=24, legacy_windows=False)
    screen = MarkdownScreen(console)
    place = 0
    while place < len(text):
        for size in sizes:
            screen.add(text[place : place + size])
            place += size
    screen.finish()
    assert isinstance(console.file, io.StringIO)
    shown = [line.rstrip() for line in final(console.file.getvalue()) if line.strip()]
    assert [line.strip() for line in shown] == ["Dear friend,", "hello.", "a", "b", "1 one", "2 two", "End"]
