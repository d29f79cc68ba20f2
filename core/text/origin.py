"""``Traced``: text that records, for each of its characters, whether the chat template wrote it or a value held it.

A template may cut, join, trim and replace its values, and change their case. Each of these operations makes a new
`Traced`, whose characters keep their origin. If an operation does not show where a character came from, it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

WRITTEN, GIVEN, UNKNOWN = b"w", b"g", b"?"  # by the template; by a value; not known


class Traced(str):
    """A string with an origin.

    Attributes:
        origin: one of `WRITTEN`, `GIVEN` and `UNKNOWN` for each character.
    """

    origin: bytes

    def __new__(cls, text: object = "", origin: bytes | None = None) -> Traced:
        self = super().__new__(cls, text)
        self.origin = UNKNOWN * len(self) if origin is None else origin
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> Traced:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return Traced(str.__add__(self, other), self.origin + origin_of(other))

    def __radd__(self, other: str) -> Traced:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return Traced(str.__add__(other, self), origin_of(other) + self.origin)

    def __mul__(self, times: SupportsIndex) -> Traced:
        return Traced(str.__mul__(self, times), self.origin * int(times))

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> Traced:
        text = str.__getitem__(self, key)
        if isinstance(key, slice):
            return Traced(text, self.origin[key])
        place = key.__index__()
        place += len(self) if place < 0 else 0
        return Traced(text, self.origin[place : place + 1])

    def __iter__(self) -> Iterator[str]:
        origin = self.origin
        for place, character in enumerate(str.__iter__(self)):
            yield Traced(character, origin[place : place + 1])

    def join(self, items: Iterable[str]) -> Traced:
        listed = list(items)
        text = str.join(self, listed)
        return Traced(text, self.origin.join(map(origin_of, listed)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines, start = [], 0
        for whole, line in zip(str.splitlines(self, True), str.splitlines(self, keepends), strict=True):
            lines.append(self._at(line, start))
            start += len(whole)
        return list(lines)

    def partition(self, sep: str) -> tuple[str, str, str]:
        return self._three(str.partition(self, sep))

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        return self._three(str.rpartition(self, sep))

    def strip(self, chars: str | None = None) -> Traced:
        return self._at(str.strip(self, chars), len(self) - len(str.lstrip(self, chars)))

    def lstrip(self, chars: str | None = None) -> Traced:
        text = str.lstrip(self, chars)
        return self._at(text, len(self) - len(text))

    def rstrip(self, chars: str | None = None) -> Traced:
        return self._at(str.rstrip(self, chars), 0)

    def removeprefix(self, prefix: str) -> Traced:
        text = str.removeprefix(self, prefix)
        return self._at(text, len(self) - len(text))

    def removesuffix(self, suffix: str) -> Traced:
        return self._at(str.removesuffix(self, suffix), 0)

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> Traced:
        if not old:
            return resembling(str.replace(self, old, new, count), self, new)
        return (new if isinstance(new, Traced) else Traced(new)).join(self.split(old, count))

    def lower(self) -> Traced:
        return self._cased(str.lower)

    def upper(self) -> Traced:
        return self._cased(str.upper)

    def casefold(self) -> Traced:
        return self._cased(str.casefold)

    def swapcase(self) -> Traced:
        return self._cased(str.swapcase)

    def capitalize(self) -> Traced:
        return self._cased(str.capitalize)

    def title(self) -> Traced:
        return self._cased(str.title)

    def center(self, width: SupportsIndex, fillchar: str = " ") -> Traced:
        text = str.center(self, width, fillchar)
        added = len(text) - len(self)
        left = added // 2 + (added & int(width) & 1)  # Python's rule
        return _filled(left, fillchar) + self + _filled(added - left, fillchar)

    def ljust(self, width: SupportsIndex, fillchar: str = " ") -> Traced:
        return self + _filled(len(str.ljust(self, width, fillchar)) - len(self), fillchar)

    def rjust(self, width: SupportsIndex, fillchar: str = " ") -> Traced:
        return _filled(len(str.rjust(self, width, fillchar)) - len(self), fillchar) + self

    def zfill(self, width: SupportsIndex) -> Traced:
        return resembling(str.zfill(self, width), self)

    def expandtabs(self, tabsize: SupportsIndex = 8) -> Traced:
        return resembling(str.expandtabs(self, tabsize), self)

    def translate(self, table: Any) -> Traced:
        text = str.translate(self, table)
        used = table.values() if isinstance(table, Mapping) else [None]
        if not all(isinstance(item, str) for item in used):  # characters given by their numbers have no known origin
            return Traced(text)
        return resembling(text, self, *used)

    def _at(self, text: str, start: int) -> Traced:
        return Traced(text, self.origin[start : start + len(text)])

    def _three(self, parts: tuple[str, str, str]) -> tuple[str, str, str]:
        head, sep, tail = parts
        return (
            self._at(head, 0),
            self._at(sep, len(head)),
            self._at(tail, len(self) - len(tail)),
        )

    def _located(self, parts: list[str], sep: str | None) -> list[str]:
        """``parts`` of this text, in order. Two parts are separated by ``sep``, or by nothing but white space."""
        made: list[str] = []
        start = 0
        for part in parts:
            if sep is None:
                start = str.find(self, part, start)
            made.append(self._at(part, start))
            start += len(part) + (0 if sep is None else len(sep))
        return made

    def _cased(self, change: Callable[[str], str]) -> Traced:
        text = change(self)
        if len(text) == len(self):  # each character became exactly one
            return Traced(text, self.origin)
        pieces = [change(character) for character in str.__iter__(self)]
        if "".join(pieces) == text:
            return Traced(text, b"".join(self.origin[i : i + 1] * len(piece) for i, piece in enumerate(pieces)))
        return resembling(text, self)


def origin_of(text: str) -> bytes:
    """The origin of any string; unknown if it is not traced."""
    return text.origin if isinstance(text, Traced) else UNKNOWN * len(text)


def resembling(text: str, *sources: str) -> Traced:
    """``text``, made only of ``sources``; it gets their origin if that is the same for all of their characters."""
    origins = list(map(origin_of, sources))
    kinds = [kind for kind in (WRITTEN, GIVEN, UNKNOWN) if any(kind in origin for origin in origins)]
    return Traced(text, (kinds[0] if len(kinds) == 1 else UNKNOWN) * len(text))


def _filled(size: int, fillchar: str) -> Traced:
    """Padding. A method's default fill character counts as the template's, since the template called the method."""
    origin = WRITTEN if fillchar == " " and not isinstance(fillchar, Traced) else origin_of(fillchar)
    return Traced(fillchar * size, origin * size)


def joined(pieces: Iterable[str]) -> Traced:
    """The concatenated pieces."""
    return Traced("", b"").join(pieces)
