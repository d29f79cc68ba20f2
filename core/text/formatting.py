"""``%`` and ``format`` for chat templates: each field keeps the origin of its text, and widths are bounded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.text.meter import MAX_CHARACTERS, METER, bound
from core.text.origin import Traced, joined, resembling

_FIELD = re.compile(
    r"%(?:\((?P<key>[^()]*)\))?(?P<flags>[#0\- +]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?[hlL]?(?P<kind>.)",
    re.S,
)
_NUMBER = re.compile(r"\d+")

ToText = Callable[[object], str]


def percent(form: Traced, values: Any, to_text: ToText) -> Traced:
    """``form % values``."""
    whole = values if isinstance(values, tuple) else (values,)
    place = 0

    def next_value() -> Any:
        nonlocal place
        if place >= len(whole):
            raise TypeError("not enough arguments for format string")
        place += 1
        return whole[place - 1]

    pieces: list[str] = []
    done = 0
    for field in _FIELD.finditer(form):
        pieces.append(form[done : field.start()])
        done = field.end()
        if field["kind"] == "%":
            pieces.append(form[done - 1 : done])
            continue
        sizes = [next_value() if size == "*" else size for size in (field["width"], field["precision"])]
        for size, star in zip(sizes, (field["width"], field["precision"]), strict=True):
            if star == "*" and not isinstance(size, int):
                raise TypeError("* wants int")
            _check_width(size)
        value = values[field["key"]] if field["key"] is not None else next_value()
        width, precision = (("" if size is None else str(size)) for size in sizes)
        dot = "" if field["precision"] is None else "."
        if field["kind"] == "s" and not width and not dot:
            pieces.append(to_text(value))
            continue
        plain = f"%{field['flags']}{width}{dot}{precision}{field['kind']}"
        shown = to_text(value) if field["kind"] == "s" else value
        made = plain % (shown,)
        pieces.append(resembling(made, shown) if isinstance(shown, str) else made)
    if "%" in form[done:]:
        raise ValueError("incomplete format")
    keyed = isinstance(values, Mapping)
    if place < len(whole) and not keyed:
        raise TypeError("not all arguments converted during string formatting")
    return _counted([*pieces, form[done:]])


def formatted(formatter: Any, form: Traced, args: Sequence[Any], kwargs: Mapping[str, Any], to_text: ToText) -> Traced:
    """``form.format(*args, **kwargs)``, whose fields ``formatter`` (a sandboxed `string.Formatter`) looks up."""
    auto = 0

    def parsed(text: str, depth: int) -> list[str]:
        nonlocal auto
        if depth > 2:
            raise ValueError("Max string recursion exceeded")
        pieces: list[str] = []
        for literal, name, spec, conversion in formatter.parse(text):
            if literal:
                pieces.append(resembling(literal, form))
            if name is None:
                continue
            if name == "" or name[0] in ".[":
                name, auto = f"{auto}{name}", auto + 1
            value, _ = formatter.get_field(name, args, kwargs)
            filled = "".join(parsed(spec, depth + 1)) if spec else ""
            for number in _NUMBER.findall(filled):
                _check_width(number)
            if conversion in (None, "s") and not filled:
                pieces.append(to_text(value))
                continue
            made = formatter.format_field(formatter.convert_field(value, conversion), filled)
            # Padding may be a character of the format: "{:[>6}".
            filling = resembling(filled[:1] if filled[1:2] in tuple("<>=^") else "", form)
            pieces.append(resembling(made, value, filling) if isinstance(value, str) else made)
        return pieces

    return _counted(parsed(form, 1))


def _counted(pieces: list[str]) -> Traced:
    METER.get().make(sum(map(len, pieces)))
    return joined(pieces)


def _check_width(size: object) -> None:
    if size is None or size == "":
        return
    if (isinstance(size, str) and len(size) > len(str(MAX_CHARACTERS))) or abs(int(size)) > MAX_CHARACTERS:  # type: ignore[call-overload]
        raise bound(f"makes a text of more than {MAX_CHARACTERS:,} characters")
    METER.get().make(abs(int(size)))  # type: ignore[call-overload]
