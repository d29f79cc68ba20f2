"""``tojson`` for chat templates: JSON in which text keeps its origin."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.text.meter import METER
from core.text.origin import GIVEN, Traced, joined, resembling

_MAX_INDENT = 64


def tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> Traced:
    """JSON as models were trained on it; jinja2's own filter escapes HTML and sorts keys instead.

    It is `json.dumps` with these arguments. Strings keep their origin; signs and numbers count as a value's.

    Raises:
        TypeError: ``value`` holds something that JSON cannot express.
        ValueError: ``indent`` is above 64.
    """
    METER.get().read_deep(value)
    step = " " * _checked(indent) if isinstance(indent, int) else indent
    between, colon = separators or ((",", ": ") if indent is not None else (", ", ": "))

    def leaf(item: object) -> str:
        text = json.dumps(item, ensure_ascii=ensure_ascii)
        return resembling(text, item) if isinstance(item, str) and item else _signs(text)

    def pieces(item: object, line: str | None) -> Iterator[str]:
        inner = None if line is None or step is None else line + step
        if isinstance(item, Mapping):
            pairs: Iterable[tuple[Any, Any]] = sorted(item.items()) if sort_keys else item.items()
            yield from listed("{}", ([leaf(_key(key)), _signs(colon), *pieces(one, inner)] for key, one in pairs), line)
        elif isinstance(item, list | tuple):
            yield from listed("[]", (list(pieces(one, inner)) for one in item), line)
        else:
            yield leaf(item)

    def listed(brackets: str, items: Iterable[list[str]], line: str | None) -> Iterator[str]:
        inner = None if line is None or step is None else line + step
        empty = True
        yield _signs(brackets[0])
        for item in items:
            if not empty:
                yield _signs(between)
            if inner is not None:
                yield _signs(inner)
            yield from item
            empty = False
        if line is not None and not empty:
            yield _signs(line)
        yield _signs(brackets[1])

    made: list[str] = []
    for piece in pieces(value, None if step is None else "\n"):
        METER.get().make(len(piece))
        made.append(piece)
    return joined(made)


def _checked(indent: int) -> int:
    if indent > _MAX_INDENT:
        raise ValueError(f"an indent of more than {_MAX_INDENT} spaces")
    return max(indent, 0)


def _key(key: object) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    raise TypeError(f"keys must be str, int, float, bool or None, not {type(key).__name__}")


def _signs(text: str) -> Traced:
    return Traced(text, GIVEN * len(text))
