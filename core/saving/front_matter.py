"""Edits the metadata at the head of a model card; lines that do not change stay as they are.

Parsing and writing them again would lose more than comments: YAML's ``language: no`` (Norwegian) becomes ``false``. The
hub's client parses the lines before and after, to check that they are read as intended.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.errors import first_line

_BLOCK = re.compile(r"\A\s*---[ \t]*\n(?P<lines>(?:.*\n)*?)---[ \t]*(?:\n|\Z)")
_KEY = re.compile(r"(?P<quote>[\"']?)(?P<key>[^\s#\"'\-\[{][^:\"']*?)(?P=quote)\s*:(?=\s|$)")
_LONGEST = 1 << 18  # characters


class FrontMatter:
    """A model card's metadata: its keys, each with its lines.

    Attributes:
        values: the keys' values, as YAML reads them.
    """

    def __init__(self, text: str) -> None:
        """
        Raises:
            ValueError: it is no YAML, not only keys and values, or nothing that can be edited line by line.
        """
        self._head = ""
        self._lines: dict[str, str] = {}
        key = None
        for line in text.splitlines(keepends=True):
            found = _KEY.match(line)
            if found and found["key"] in self._lines:
                raise ValueError(f"the key {found['key']!r} comes twice")
            key = found["key"] if found else key
            if key is None:
                self._head += line
            else:
                self._lines[key] = self._lines.get(key, "") + line
        self.values = _read(text)
        if list(self.values) != list(self._lines):
            raise ValueError("its keys are not one to a line")

    def __str__(self) -> str:
        return self._head + "".join(self._lines.values())

    def with_changes(self, changes: Mapping[str, str | None], tag: str) -> FrontMatter:
        """A copy with other values for some keys (None removes a key) and one more tag.

        Raises:
            ValueError: a YAML reader would not return these values.
        """
        lines = {key: found for key, found in self._lines.items() if changes.get(key, "") is not None}
        written = {key: value for key, value in changes.items() if value is not None}
        lines |= {key: f"{key}: {value}\n" for key, value in written.items()}
        tags = _listed(self.values.get("tags"))
        if tag not in tags:
            lines["tags"] = _with_tag(lines.get("tags", "tags:\n"), tag)
            tags.append(tag)
        # A last line without a line break would be joined with the next one.
        made = FrontMatter(self._head + "".join(f"{found.rstrip()}\n" for found in lines.values()))
        if _listed(made.values["tags"]) != tags or any(made.values[key] != value for key, value in written.items()):
            raise ValueError("it cannot be changed line by line")
        return made


def split_card(text: str) -> tuple[str | None, str]:
    """The lines of a card's metadata, None where it has none, and the card without them."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found = _BLOCK.match(text)
    return (found["lines"], text[found.end() :]) if found else (None, text)


def _listed(value: Any) -> list[Any]:
    """One value or several, both of which the hub accepts, as a list."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def _with_tag(lines: str, tag: str) -> str:
    """The lines of the key ``tags`` with one more tag, in their present style."""
    items = re.findall(r"^([ \t]*)-[ \t]", lines, re.MULTILINE)
    if items:
        return f"{lines.rstrip()}\n{items[0]}- {tag}\n"
    before, _, value = lines.partition(":")
    value = value.strip()
    if value.startswith("[") and value.endswith("]"):
        inner = value[1:-1].strip().rstrip(",")
        return f"{before}: [{inner}, {tag}]\n" if inner else f"{before}: [{tag}]\n"
    return f"{before}:\n" + (f"- {value}\n" if value else "") + f"- {tag}\n"


def _read(text: str) -> dict[str, Any]:
    """The values, read by the hub's client.

    Raises:
        ValueError: they cannot be read.
    """
    if len(text) > _LONGEST:
        raise ValueError("it is too long")
    if not text.strip():
        return {}
    from huggingface_hub import RepoCard  # slow to import

    try:
        values = vars(RepoCard(f"---\n{text.rstrip()}\n---\n").data)
    except (Exception, RecursionError) as error:  # its YAML reader may raise anything for an untrusted text
        raise ValueError(f"it is not valid YAML: {first_line(error)}") from error
    return {str(key): value for key, value in values.items()}
