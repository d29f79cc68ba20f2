"""What is printed: safe for a terminal, one line where a line is meant, aligned."""

from __future__ import annotations

import json

import pytest

from core.cli import terminal

HOSTILE = "\x1b[2J\x07\x9b31m\u202egnp.exe\u2028\x7f\r\n"


def test_a_name_is_one_printable_line() -> None:
    shown = terminal.clean(HOSTILE)
    assert shown.isprintable()
    assert shown == r"\x1b[2J\x07\x9b31m\u202egnp.exe\u2028\x7f\r\n"


@pytest.mark.parametrize("text", ["model.layers.0.weight", "früh 模型 → …", ""])
def test_what_is_printable_stays(text: str) -> None:
    assert terminal.clean(text) == terminal.clean_prose(text) == text


def test_prose_keeps_lines_tabs_and_joined_emoji() -> None:
    text = "a\tb\n👩\u200d💻 done\n"
    assert terminal.clean_prose(text) == text


def test_prose_carries_no_control_sequence() -> None:
    assert terminal.clean_prose("a\x1b]0;title\x07b\x9bc\rd") == r"a\x1b]0;title\x07b\x9bc\rd"


def test_a_cell_is_one_word() -> None:
    assert terminal.cell("a b\tc") == r"a\x20b\tc"
    assert terminal.cell("") == "-"


def test_no_line_of_a_message_poses_as_another() -> None:
    message = "a\nerror: b\n\n    c\x1b[1m"
    assert terminal.fold("error: ", message).split("\n") == ["error: a", "  error: b", r"  c\x1b[1m"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1_600_000, "1.53 MiB"),
        (93_405_585_408, "86.99 GiB"),
        (3 * 2**50, "3072.00 TiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert terminal.size(count) == text


def test_columns_are_aligned() -> None:
    assert terminal.table([("A", "LONG", "C"), ("longer", "b", "")]) == ["A       LONG  C", "longer  b"]


def test_json_holds_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.put_json({HOSTILE: [HOSTILE, "é"]})
    printed = capsys.readouterr().out
    assert all(" " <= character <= "~" or character == "\n" for character in printed)
    assert json.loads(printed) == {HOSTILE: [HOSTILE, "é"]}
