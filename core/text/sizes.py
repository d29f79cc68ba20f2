"""Computes the size of a string method's or filter's result from its arguments, before it runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from core.text.meter import METER

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_SPACES = re.compile(r"\s+")


def check_size(name: str, owner: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Counts the result that ``owner.name(*args, **kwargs)``, or the filter of that name, will make.

    Raises:
        ChatTemplateError: it is too large.
        TypeError: the arguments do not fit this method or filter.
    """
    check = _CHECKS.get(name)
    if check is not None:
        check(owner, *args, **kwargs)


def _padded(text: Any, width: Any = 80, *_: Any, **__: Any) -> None:
    METER.get().make(max(len(str(text)), int(width)))


def _expandtabs(text: str, tabsize: Any = 8) -> None:
    METER.get().make(len(text) + text.count("\t") * abs(int(tabsize)))


def _replace(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    METER.get().make(len(text) + text.count(old) * max(0, len(new) - len(old)))
    METER.get().make_items(text.count(old))


def _indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    text = str(text)
    METER.get().make(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else abs(int(width))))


def _translate(text: str, table: Any) -> None:
    longest = max((len(item) for item in table.values() if isinstance(item, str)), default=1)
    METER.get().make(len(text) * max(1, longest))


def _split(text: str, sep: Any = None, maxsplit: Any = -1) -> None:
    if maxsplit >= 0:
        METER.get().make_items(min(len(text), int(maxsplit)) + 1)
    else:
        METER.get().make_items(sum(1 for _ in _SPACES.finditer(text)) if sep is None else text.count(sep))


def _splitlines(text: str, *_: Any, **__: Any) -> None:
    METER.get().make_items(sum(map(text.count, _LINE_ENDS)))


def _listed(value: Any, *_: Any, **__: Any) -> None:
    if isinstance(value, str | range):
        METER.get().make_items(len(value))


def _batch(value: Any, count: Any, *_: Any, **__: Any) -> None:
    _listed(value)
    METER.get().make_items(int(count))


def _sorted(value: Any, *_: Any, **__: Any) -> None:
    _listed(value)
    METER.get().read_deep(value)
    if hasattr(value, "__len__"):
        METER.get().spend(4 * len(value))


def _slow(value: Any, *_: Any, **__: Any) -> None:
    METER.get().read_deep(value)
    if isinstance(value, str):
        METER.get().spend(len(value) // 4)


def _striptags(value: Any) -> None:
    text = str(value)  # for each tag, the rest of the text is copied
    METER.get().spend((text.count("<") + 1) * len(text) // 4_096)


_CHECKS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    **dict.fromkeys(("split", "rsplit"), _split),
    **dict.fromkeys(("list", "map", "select", "reject", "selectattr", "rejectattr", "fromkeys"), _listed),
    **dict.fromkeys(("sort", "unique", "groupby", "dictsort", "min", "max"), _sorted),
    **dict.fromkeys(("batch", "slice"), _batch),
    **dict.fromkeys(
        ("wordwrap", "urlize", "title", "urlencode", "pprint", "wordcount", "xmlattr", "escape", "e"), _slow
    ),
    "expandtabs": _expandtabs,
    "replace": _replace,
    "indent": _indent,
    "translate": _translate,
    "splitlines": _splitlines,
    "striptags": _striptags,
}
