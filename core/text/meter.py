"""How much work one rendering of a chat template has done, and the bounds of it.

Everything is counted, nothing is timed: a template that is refused on one machine is refused on all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from core.errors import ChatTemplateError

MAX_CHARACTERS = 16_000_000  # of a rendered chat, or of one string that a template makes: far above any context
MAX_MADE = 256_000_000  # characters of all strings that one rendering makes
MAX_ITEMS = 1_000_000  # of a list that a template makes, what is nested in it included
MAX_STEPS = 1_000_000  # loop rounds, calls, filters, operations on text; a large operand counts for several
MAX_BITS = 10_000  # of an integer that an operator makes

_CHARACTERS_A_STEP = 4_096
_ITEMS_A_STEP = 64
_ROUNDS_A_STEP = 8  # of a filter over a list, which are cheaper than those of a loop


class Meter:
    """The counts of one rendering."""

    def __init__(self) -> None:
        self._steps = 0
        self._made = 0
        self._weights: dict[int, tuple[object, int]] = {}  # of containers, by identity; kept alive by the entry

    def spend(self, steps: int = 1) -> None:
        """Counts ``steps``.

        Raises:
            ChatTemplateError: they are more than `MAX_STEPS`.
        """
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise bound(f"takes more than {MAX_STEPS:,} steps")

    def make(self, characters: int) -> None:
        """Counts a string of ``characters``; to be called before it is made, wherever its length is known then.

        Raises:
            ChatTemplateError: it is longer than `MAX_CHARACTERS`, or all strings together than `MAX_MADE`.
        """
        if characters > MAX_CHARACTERS:
            raise bound(f"makes a text of more than {MAX_CHARACTERS:,} characters")
        self._made += characters
        if self._made > MAX_MADE:
            raise bound(f"makes texts of more than {MAX_MADE:,} characters together")

    def make_items(self, items: int) -> None:
        """Counts a list of ``items``, before it is made.

        Raises:
            ChatTemplateError: they are more than `MAX_ITEMS`.
        """
        if items > MAX_ITEMS:
            raise bound(f"makes a list of more than {MAX_ITEMS:,} items")
        self.spend(1 + max(items, 0) // _ITEMS_A_STEP)

    def read(self, value: object) -> Any:
        """``value``, which is about to be handed to a function or an operator: counted by its length."""
        if isinstance(value, str | bytes):
            self.spend(len(value) // _CHARACTERS_A_STEP)
        elif isinstance(value, Mapping | list | tuple | set | frozenset):
            self.spend(len(value) // _ITEMS_A_STEP)
        return value

    def read_deep(self, value: object) -> Any:
        """``value``, which is about to be compared or printed: counted with all that is nested in it.

        Raises:
            ChatTemplateError: as `weigh`.
        """
        self.spend(self.weigh(value) // _ITEMS_A_STEP)
        return value

    def weigh(self, value: object, *, nested: bool = False) -> int:
        """How many values are in ``value``: itself, and what is nested in it, as often as it is.

        Raises:
            ChatTemplateError: they are more than `MAX_ITEMS`. A list nested in itself twice, again and again, is.
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
        if nested or len(value) <= _ITEMS_A_STEP:  # not every slice of a long list, which memory would have to hold
            self._weights[id(value)] = value, weight
        return weight

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """``items``, counted as they are taken."""
        for place, item in enumerate(items):
            if place % _ROUNDS_A_STEP == 0:
                self.spend()
            yield item


def plain_items(value: Any) -> Iterator[Any]:
    """The items of a list, tuple or set, whatever its class does when a template goes through it."""
    return list.__iter__(value) if isinstance(value, list) else iter(value)


def bound(what: str) -> ChatTemplateError:
    """The error for a template that goes beyond a bound; whoever knows the template's file puts it in."""
    return ChatTemplateError(f"the chat template {what}", hint="It is broken or hostile: no conversation needs that.")


METER: ContextVar[Meter] = ContextVar("meter")
