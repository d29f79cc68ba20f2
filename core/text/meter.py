"""``Meter``: counts the work of rendering a chat template, and enforces its limits.

Everything is counted and nothing is timed, so a template that is refused on one machine is refused on all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from core.errors import ChatTemplateError

MAX_CHARACTERS = 16_000_000  # of a rendered chat, or of one string that a template makes: far above any context
MAX_MADE = 256_000_000  # characters of all strings that one rendering makes
MAX_ITEMS = 1_000_000  # of a list that a template makes, nested items included
MAX_STEPS = 1_000_000  # loop iterations, calls, filters, operations on text; a large operand counts as several
MAX_BITS = 10_000  # of an integer that an operator makes

_CHARACTERS_A_STEP = 4_096
_ITEMS_A_STEP = 64
_ROUNDS_A_STEP = 8  # iterations of a filter over a list; they cost less than those of a loop


class Meter:
    """The counters of one rendering."""

    def __init__(self) -> None:
        self._steps = 0
        self._made = 0
        self._weights: dict[int, tuple[object, int]] = {}  # by identity; the entry keeps the container alive

    def spend(self, steps: int = 1) -> None:
        """Counts ``steps``.

        Raises:
            ChatTemplateError: the total exceeds `MAX_STEPS`.
        """
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise bound(f"takes more than {MAX_STEPS:,} steps")

    def make(self, characters: int) -> None:
        """Counts a string of ``characters``. Call it before the string is made, if the length is known then.

        Raises:
            ChatTemplateError: it is longer than `MAX_CHARACTERS`, or the total exceeds `MAX_MADE`.
        """
        if characters > MAX_CHARACTERS:
            raise bound(f"makes a text of more than {MAX_CHARACTERS:,} characters")
        self._made += characters
        if self._made > MAX_MADE:
            raise bound(f"makes texts of more than {MAX_MADE:,} characters together")

    def make_items(self, items: int) -> None:
        """Counts a list of ``items``, before it is made.

        Raises:
            ChatTemplateError: there are more than `MAX_ITEMS`.
        """
        if items > MAX_ITEMS:
            raise bound(f"makes a list of more than {MAX_ITEMS:,} items")
        self.spend(1 + max(items, 0) // _ITEMS_A_STEP)

    def read(self, value: object) -> Any:
        """``value``, an argument of a function or an operator; counted by its length."""
        if isinstance(value, str | bytes):
            self.spend(len(value) // _CHARACTERS_A_STEP)
        elif isinstance(value, Mapping | list | tuple | set | frozenset):
            self.spend(len(value) // _ITEMS_A_STEP)
        return value

    def read_deep(self, value: object) -> Any:
        """``value``, which will be compared or printed; counted with everything nested in it.

        Raises:
            ChatTemplateError: as `weigh`.
        """
        self.spend(self.weigh(value) // _ITEMS_A_STEP)
        return value

    def weigh(self, value: object, *, nested: bool = False) -> int:
        """Number of values in ``value``: itself and all nested values, each as often as it occurs.

        Raises:
            ChatTemplateError: it exceeds `MAX_ITEMS`; a few lists nested in each other several times are enough for
                that.
        """
        if isinstance(value, str | bytes):
            return 1 + len(value) // _ITEMS_A_STEP
        if not isinstance(value, Mapping | list | tuple | set | frozenset):
            return 1
        known = self._weights.get(id(value))
        if known is not None:
            return known[1]
        items: Iterable[object] = (
            (item for pair in value.items() for item in pair) if isinstance(value, Mapping) else plain_items(value)
        )
        weight = 1
        for item in items:
            weight += self.weigh(item, nested=True)
            if weight > MAX_ITEMS:
                raise bound(f"makes a list of more than {MAX_ITEMS:,} items")
        if nested or len(value) <= _ITEMS_A_STEP:  # not every slice of a long list: all would stay in memory
            self._weights[id(value)] = value, weight
        return weight

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """``items``, counted as they are taken."""
        for place, item in enumerate(items):
            if place % _ROUNDS_A_STEP == 0:
                self.spend()
            yield item


def plain_items(value: Any) -> Iterator[Any]:
    """The items of a list, tuple or set, without calling the ``__iter__`` of a subclass."""
    return list.__iter__(value) if isinstance(value, list) else iter(value)


def bound(what: str) -> ChatTemplateError:
    """The error for a template that exceeds a limit. The caller adds the template's file."""
    return ChatTemplateError(f"the chat template {what}", hint="It is broken or hostile: no conversation needs that.")


METER: ContextVar[Meter] = ContextVar("meter")
