"""What is shown of an error that a library raised: one line of bounded length, and never nothing."""

from __future__ import annotations

import pytest

from core.errors import UsageError, first_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one  \ntwo"), "one"),
        (ValueError("\n"), "ValueError"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 500), "x" * 199 + "…"),
        (UsageError("bad", hint="do this"), "bad"),
    ],
)
def test_one_line_of_an_error(error: Exception, expected: str) -> None:
    assert first_line(error) == expected
