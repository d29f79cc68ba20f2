"""What an answer looks like: Markdown by paragraphs, nothing that a terminal obeys, every paragraph once."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from core.cli import screen as screen_module
from core.cli.markdown import SafeMarkdown, end_of_block
from core.cli.screen import MarkdownScreen

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


AS_WRITTEN = [
    "Use Vec<T> and Map<K, V>.",
    "<details>\n<summary>More</summary>\n\nHere it is.\n\n</details>",
    "<think>Well, <b>no</b>.</think> No<br/>.",
    "<!-- a remark -->",
    "<script>\nlet x = 1 < 2\n</script>",
    "[1]: https://example.org/one",
    "[^1]: A_note.",
    '[here](https://example.org "the title")',
    "| a | b |\n|---|---|\n| 1 | 2 | left over |",
    "> " * 25 + "deep",
    "```Here is what I found:\nx = 1\n```",
]


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_what_markdown_would_hide_is_shown_as_it_is_written(text: str) -> None:
    shown = [line.strip() for line in _OWN.sub("", rendered(text)).split("\n")]
    assert [line for line in shown if line] == [line for line in text.split("\n") if line]


def test_a_picture_is_shown_with_where_it_is() -> None:
    shown = _OWN.sub("", rendered("A picture ![of a tree](tree.png) here"))
    assert shown.strip() == "A picture !of a tree (tree.png) here"


def test_html_in_markdown_leaves_the_rest_markdown() -> None:
    shown = rendered("<details>\n\n- **one** `Vec<T>`\n\n</details>")
    assert "\x1b[1mone\x1b[0m" in shown
    assert [line.strip() for line in _OWN.sub("", shown).split("\n") if line] == [
        "<details>",
        "• one Vec<T>",
        "</details>",
    ]


def test_a_long_word_in_a_narrow_column_goes_on_in_the_next_line() -> None:
    rows = [[f"{letter * 9}{number}" for letter in "abcdefgh"] for number in "12"]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * 8, rows[1]])
    shown = _OWN.sub("", rendered(table))
    assert "|" not in shown  # it is a table
    assert all(shown.count(letter) == 18 for letter in "abcdefgh")


SIGNS = "* ** _ __ ` ``` ~~~ ~~ [ ]( ) ![ ]: < > </ /> <!-- --> # - + 1. | \\ & ; &amp; \" ' = ---"
PIECES = [*SIGNS.split(), "    ", " ", "\n", "\n\n", "| a | b |\n|---|---|\n| c"]
WORD = st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("klmnopqrst")).map(lambda two: f"w{''.join(two)}y")


@given(st.lists(st.sampled_from(PIECES) | WORD, max_size=30))
def test_no_word_is_lost_whatever_is_said(pieces: list[str]) -> None:
    text = "".join(pieces)
    shown = _OWN.sub("", rendered(text, width=300))
    languages = [line.strip(" `~").split(" ")[0] for line in text.split("\n") if re.match(r"[ >*+-]*(```|~~~)", line)]
    for word in re.findall(r"w..y", text):
        assert word in shown or any(word in language for language in languages)


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


class Terminal:
    """What a terminal of this size shows of what it is sent; what has left it at the top is kept, and never changes."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines, self._row, self._column, self._wraps = [""], 0, 0, True

    def send(self, text: str) -> None:
        for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", text):
            if part in ("\n", "\r"):
                self._down() if part == "\n" else None
                self._column = 0
            elif part.startswith("\x1b[?7"):
                self._wraps = part.endswith("h")
            elif part == "\x1b[2K":
                self.lines[self._row] = ""
            elif part.endswith("A") and part.startswith("\x1b"):
                self._row = max(len(self.lines) - self.height, self._row - int(part[2:-1]), 0)
            elif not part.startswith("\x1b"):
                self._print(part)

    def _print(self, text: str) -> None:
        for character in text:
            size = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if self._column + size > self.width and self._wraps:
                self._down()
                self._column = 0
            if self._column + size <= self.width:
                self.lines[self._row] += character
                self._column += size

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.lines):
            self.lines.append("")


class Watched(io.StringIO):
    """A stream to a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def write(self, text: str) -> int:
        self._terminal.send(text)
        return len(text)


def on(terminal: Terminal) -> Console:
    size = {"width": terminal.width, "height": terminal.height}
    return Console(file=Watched(terminal), force_terminal=True, legacy_windows=False, **size)  # type: ignore[arg-type]


@pytest.fixture
def _every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being written is drawn with each piece, however fast they come."""
    monkeypatch.setattr(screen_module, "_INTERVAL", 0.0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_an_answer_in_any_pieces_looks_the_same(sizes: list[int]) -> None:
    text = "Dear **friend**,\nhello.\n\n```\na\n\nb\n```\n\n1. one\n\n2. two\n\nEnd"
    terminal = Terminal(40, 24)
    screen = MarkdownScreen(on(terminal))
    place = 0
    while place < len(text):
        for size in sizes:
            screen.add(text[place : place + size])
            place += size
    screen.finish()
    shown = [line.strip() for line in terminal.lines if line.strip()]
    assert shown == ["Dear friend,", "hello.", "a", "b", "1 one", "2 two", "End"]


WORDS = [f"word{number}" for number in range(400)]
HIGH = {
    "a paragraph": " ".join(WORDS),
    "wide characters": " ".join(f"語{word}語" for word in WORDS),
    "characters that a terminal finds wider than we do": " ".join(f"\U0001f1e9\U0001f1ea{word}" for word in WORDS),
    "a line without a space": "".join(f"{word}," for word in WORDS),
    "code": "```python\n" + "\n".join(f"{word} = 1" for word in WORDS) + "\n```",
    "a table": "| a | b |\n|---|---|\n" + "\n".join(f"| {word} | {'x' * 90} |" for word in WORDS[:40]),
    "a list": "\n".join(f"- {word} {'y ' * 50}" for word in WORDS[:40]),
}


@pytest.mark.usefixtures("_every_piece")
@pytest.mark.parametrize("name", HIGH)
@pytest.mark.parametrize("after", ["", "\n\nEnd"])
def test_a_block_higher_than_the_screen_is_shown_once(name: str, after: str) -> None:
    terminal = Terminal(80, 24)
    screen = MarkdownScreen(on(terminal))
    text = f"Before\n\n{HIGH[name]}{after}"
    for place in range(0, len(text), 97):
        screen.add(text[place : place + 97])
    screen.finish()
    shown = "".join(line.strip() if name.endswith("space") else f"{line}\n" for line in terminal.lines)
    assert re.findall(r"word\d+|Before|End", shown) == re.findall(r"word\d+|Before|End", text)


@pytest.mark.usefixtures("_every_piece")
def test_the_end_of_a_high_block_is_seen_while_it_is_written() -> None:
    terminal = Terminal(80, 24)
    screen = MarkdownScreen(on(terminal))
    for word in WORDS:
        screen.add(f"{word} ")
        assert terminal.lines[-1].endswith(word)
        assert len(terminal.lines) < terminal.height


@pytest.mark.usefixtures("_every_piece")
@pytest.mark.parametrize(("width", "height"), [(80, 40), (120, 24), (50, 24)])
def test_a_screen_that_changes_its_size_loses_and_repeats_nothing(width: int, height: int) -> None:
    """The model of a terminal cuts no line that is there and joins none, as xterm."""
    terminal = Terminal(80, 24)
    console = on(terminal)
    screen = MarkdownScreen(console)
    for number, word in enumerate(WORDS):
        if number == 200:
            console.size = width, height  # type: ignore[assignment]
            terminal.width, terminal.height = width, height
        screen.add(f"{word} ")
    screen.finish()
    assert " ".join(terminal.lines).split() == WORDS


@pytest.mark.usefixtures("_every_piece")
@pytest.mark.parametrize("length", range(70, 90))
def test_ctrl_c_is_not_in_the_way(length: int) -> None:
    """A terminal shows it behind what is being written, which is taken away all the same."""
    terminal = Terminal(80, 24)
    screen = MarkdownScreen(on(terminal))
    screen.add("x" * length)
    terminal.send("^C")
    screen.finish()
    assert "".join(terminal.lines) == "x" * length
