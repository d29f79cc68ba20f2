"""The kinds of values that settings have; each kind checks a value, and an error names the setting."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from core.errors import UsageError

_INF = math.inf
_LARGEST_ID = 2**31 - 1  # MLX's indices


class Kind(Protocol):
    """A type and a range."""

    @property
    def annotation(self) -> str:
        """The type, as Python's annotations spell it."""

    def checked(self, name: str, value: Any) -> Any:
        """The value of the setting ``name``, as this type.

        Raises:
            UsageError: a value of another type, or out of range.
        """


@dataclass(frozen=True, slots=True)
class Number:
    """A float.

    Attributes:
        expected: the range, as an error states it.
        accepts: whether a value is in the range.
    """

    annotation: ClassVar[str] = "float"
    expected: str
    accepts: Callable[[float], bool]

    def checked(self, name: str, value: Any) -> float:
        """A float in the range."""
        if isinstance(value, str | bytes):
            raise UsageError(f"{name} must be a number", expected=self.expected, found=repr(value))
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UsageError(f"{name} must be a number", expected=self.expected, found=shown(value)) from None
        except OverflowError:  # an integer beyond all floats
            raise UsageError(f"{name} is out of range", expected=self.expected, found=shown(value)) from None
        if not self.accepts(number):
            raise UsageError(f"{name} is out of range", expected=self.expected, found=number)
        return number


@dataclass(frozen=True, slots=True)
class Count:
    """An integer.

    Attributes:
        least: the smallest value; None: there is no smallest value.
        optional: None is a value too.
        note: what an error adds to the range.
    """

    least: int | None
    optional: bool = False
    note: str = ""

    @property
    def annotation(self) -> str:
        """The type, as Python's annotations spell it."""
        return "int | None" if self.optional else "int"

    def checked(self, name: str, value: Any) -> int | None:
        """An integer in the range, or None."""
        if value is None and self.optional:
            return None
        try:
            count = operator.index(value)
        except TypeError:
            raise UsageError(f"{name} must be an integer", found=shown(value)) from None
        if self.least is not None and count < self.least:
            expected = f"{self.least} or more{self.note}"
            raise UsageError(f"{name} is out of range", expected=expected, found=shown(count))
        return count


@dataclass(frozen=True, slots=True)
class Ids:
    """Token ids, of whatever vocabulary."""

    annotation: ClassVar[str] = "Sequence[int]"

    def checked(self, name: str, value: Any) -> tuple[int, ...]:
        """Integers that MLX can index with."""
        try:
            ids = tuple(operator.index(item) for item in value)
        except TypeError:
            raise UsageError(f"{name} must be token ids", expected="integers", found=shown(value)) from None
        if ids and not 0 <= min(ids) <= max(ids) <= _LARGEST_ID:
            wrong = next(item for item in ids if not 0 <= item <= _LARGEST_ID)
            raise UsageError(f"{name} must be token ids", expected=f"0 to {_LARGEST_ID}", found=shown(wrong))
        return ids

    def token_ids(self, value: Sequence[int]) -> Sequence[int]:
        """All ids in a value."""
        return value


@dataclass(frozen=True, slots=True)
class Words:
    """Sequences of token ids."""

    annotation: ClassVar[str] = "Sequence[Sequence[int]]"

    def checked(self, name: str, value: Any) -> tuple[tuple[int, ...], ...]:
        """Sequences that are not empty."""
        given = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
        if any(isinstance(word, str) or not isinstance(word, Sequence) or not len(word) for word in given):
            raise UsageError(
                f"{name} must be lists of token ids", expected="for instance [[5, 7], [9]]", found=shown(value)
            )
        return tuple(Ids().checked(name, word) for word in given)

    def token_ids(self, value: Sequence[Sequence[int]]) -> Sequence[int]:
        """All ids in a value."""
        return [item for word in value for item in word]


@dataclass(frozen=True, slots=True)
class Bias:
    """Token ids, and what is added to their logits."""

    annotation: ClassVar[str] = "Mapping[int, float]"
    _value: ClassVar[Number] = Number("-inf, or from -1e30 to 1e30", lambda x: x == -_INF or abs(x) <= 1e30)

    def checked(self, name: str, value: Any) -> Mapping[int, float]:
        """Ids that MLX can index with, and floats."""
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} must be a mapping of token ids to numbers", found=shown(value))
        biases = [self._value.checked(f"a value of {name}", item) for item in value.values()]
        return dict(zip(Ids().checked(f"the keys of {name}", value), biases, strict=True))

    def token_ids(self, value: Mapping[int, float]) -> Sequence[int]:
        """All ids in a value."""
        return list(value)


@dataclass(frozen=True, slots=True)
class Processors:
    """Processors of the user's own."""

    annotation: ClassVar[str] = "Sequence[Processor]"

    def checked(self, name: str, value: Any) -> tuple[Any, ...]:
        """Callables."""
        if callable(value) or not isinstance(value, Sequence) or not all(callable(item) for item in value):
            hint = "Each is called with (logits, context); see core.generation.Processor."
            raise UsageError(f"{name} must be a list of callables", found=shown(value), hint=hint)
        return tuple(value)


@dataclass(frozen=True, slots=True)
class Order:
    """Names of stages, each at most once.

    Attributes:
        names: those that there are.
    """

    annotation: ClassVar[str] = "Sequence[str]"
    names: tuple[str, ...]

    def checked(self, name: str, value: Any) -> tuple[str, ...]:
        """Names that there are."""
        order = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
        unknown = [item for item in order if item not in self.names]
        if unknown or isinstance(value, str):
            expected, found = ", ".join(self.names), shown((unknown or order)[0])
            raise UsageError(f"{name} is a list of processors' names", expected=expected, found=found)
        if len(set(order)) != len(order):
            twice = next(item for item in order if order.count(item) > 1)
            raise UsageError(f"{name} names {twice!r} twice")
        return tuple(order)


def shown(value: Any) -> str:
    """A value as an error shows it."""
    try:
        return repr(value)[:60]
    except ValueError:  # Python does not write integers of thousands of digits
        return "a very long number"
