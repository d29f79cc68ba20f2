"""Lines to messages: what joins lines, what is a command, and where the input ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.cli.reading import Said, next_said
from core.errors import UsageError


def lines(*given: str) -> Callable[[str], str]:
    """A keyboard on which these lines are typed, and the end."""
    rest = iter(given)

    def line(prompt: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    return line


CASES: dict[str, tuple[tuple[str, ...], Said]] = {
    "line": (("  a ",), Said("  a ")),
    "empty first": (("", "   ", "a"), Said("a")),
    "backslash": (("a\\", "b\\", "c"), Said("a\nb\nc")),
    "backslash and empty": (("a\\", ""), Said("a\n")),
    "quotes around lines": (('"""', "a", "", "b\\", '"""'), Said("a\n\nb\\")),
    "quotes at the lines": (('"""a', "/b", ' c """'), Said("a\n/b\n c ")),
    "quotes in a line": (('"""a"""',), Said("a")),
    "no quotes within": (('a """',), Said('a """')),
    "empty quotes": (('"""', '"""'), Said("")),
    "command": (("/save a b.json ",), Said("save a b.json", is_command=True)),
    "slash": (("//etc/passwd",), Said("/etc/passwd")),
    "pasted lines": (("/* a\nb */",), Said("/* a\nb */")),
    "pasted slashes": (("// a\nb\\",), Said("// a\nb\\")),
    "pasted docstring": (('"""Doc."""\n\nimport os',), Said('"""Doc."""\n\nimport os')),
    "pasted open quotes": (('"""Doc.\nimport os\n',), Said('"""Doc.\nimport os\n')),
    "pasted code between docstrings": (('"""a"""\nb\n"""c"""',), Said('"""a"""\nb\n"""c"""')),
    "quotes that end within a line": (('"""a""" b',), Said('"""a""" b')),
    "three quotes alone, and a line": (('"""', "a", '""" b', '"""'), Said('a\n""" b')),
    "pasted command in quotes": (('"""\n/save x\n"""',), Said("/save x")),
}


@pytest.mark.parametrize("name", CASES)
def test_messages(name: str) -> None:
    given, said = CASES[name]
    assert next_said(lines(*given)) == said


def test_the_end() -> None:
    with pytest.raises(EOFError):
        next_said(lines("", " "))


@pytest.mark.parametrize("given", [("a\\",), ('"""',), ('"""a', "b")])
def test_the_end_within_a_message(given: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="the input ends within a message"):
        next_said(lines(*given))
