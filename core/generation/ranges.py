"""Which values the settings of ``Sampling`` may have; a value out of its range is one error that names it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.errors import UsageError

_INF = math.inf
_LARGEST_ID = 2**31 - 1  # MLX's indices
# Name → how the range reads, and whether a value is in it.
_RANGES: dict[str, tuple[str, Any]] = {
    "temperature": ("0 or more", lambda x: 0 <= x < _INF),
    "top_p": ("more than 0, at most 1", lambda x: 0 < x <= 1),
    "min_p": ("0 to 1", lambda x: 0 <= x <= 1),
    "typical_p": ("more than 0, at most 1", lambda x: 0 < x <= 1),
    "xtc_probability": ("0 to 1", lambda x: 0 <= x <= 1),
    "xtc_threshold": ("more than 0, at most 0.5: of two likely choices, one is excluded", lambda x: 0 < x <= 0.5),
    "repetition_penalty": ("more than 0, at most 1000", lambda x: 0 < x <= 1000),
    "presence_penalty": ("-1000 to 1000", lambda x: -1000 <= x <= 1000),
    "frequency_penalty": ("-1000 to 1000", lambda x: -1000 <= x <= 1000),
    "dry_multiplier": ("0 to 1000", lambda x: 0 <= x <= 1000),
    "dry_base": ("1 to 1000", lambda x: 1 <= x <= 1000),
}
# Name → the least value, and whether None is one.
_COUNTS: dict[str, tuple[int | None, bool]] = {
    "top_k": (0, False),
    "seed": (None, True),
    "penalty_context": (1, True),
    "dry_allowed_length": (1, False),
    "dry_context": (1, True),
    "no_repeat_ngram_size": (0, False),
    "min_new_tokens": (0, False),
    "min_length": (0, False),
}


def numbers(settings: Any) -> dict[str, float]:
    """Those settings that are numbers, as floats in their ranges."""
    return {name: _number(name, getattr(settings, name), *accepted) for name, accepted in _RANGES.items()}


def counts(settings: Any) -> dict[str, int | None]:
    """Those settings that count something, and the seed, as integers."""
    return {name: _count(name, getattr(settings, name), *accepted) for name, accepted in _COUNTS.items()}


def _number(name: str, value: Any, expected: str, accepts: Any) -> float:
    if isinstance(value, str | bytes):
        raise UsageError(f"{name} must be a number", expected=expected, found=repr(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a number", expected=expected, found=shown(value)) from None
    except OverflowError:  # an integer beyond all floats
        raise UsageError(f"{name} is out of range", expected=expected, found=shown(value)) from None
    if not accepts(number):
        raise UsageError(f"{name} is out of range", expected=expected, found=number)
    return number


def _count(name: str, value: Any, least: int | None, may_be_none: bool) -> int | None:
    if value is None and may_be_none:
        return None
    try:
        count = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be an integer", found=shown(value)) from None
    if least is not None and count < least:
        more = ", or None for all" if may_be_none else " (0 is all)" if name == "top_k" else ""
        expected = f"{least} or more{more}"
        raise UsageError(f"{name} is out of range", expected=expected, found=shown(count))
    return count


def shown(value: Any) -> str:
    """A value as an error shows it."""
    try:
        return repr(value)[:60]
    except ValueError:  # Python does not write integers of thousands of digits
        return "a very long number"


def ids(name: str, values: Any) -> tuple[int, ...]:
    """Token ids, of whatever vocabulary."""
    try:
        ids = tuple(operator.index(value) for value in values)
    except TypeError:
        raise UsageError(f"{name} must be token ids", expected="integers", found=shown(values)) from None
    if ids and not 0 <= min(ids) <= max(ids) <= _LARGEST_ID:
        wrong = next(item for item in ids if not 0 <= item <= _LARGEST_ID)
        raise UsageError(f"{name} must be token ids", expected=f"0 to {_LARGEST_ID}", found=shown(wrong))
    return ids


def words(name: str, values: Any) -> tuple[tuple[int, ...], ...]:
    """Sequences of token ids."""
    given = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    if any(isinstance(word, str) or not isinstance(word, Sequence) or not len(word) for word in given):
        raise UsageError(
            f"{name} must be lists of token ids", expected="for instance [[5, 7], [9]]", found=shown(values)
        )
    return tuple(ids(name, word) for word in given)


def bias(values: Any) -> Mapping[int, float]:
    """Token ids and what is added to their logits."""
    if not isinstance(values, Mapping):
        raise UsageError("logit_bias must be a mapping of token ids to numbers", found=shown(values))
    biases = [
        _number("a value of logit_bias", value, "-inf, or from -1e30 to 1e30", lambda x: x == -_INF or abs(x) <= 1e30)
        for value in values.values()
    ]
    return dict(zip(ids("the keys of logit_bias", values), biases, strict=True))


def callables(values: Any) -> tuple[Any, ...]:
    """Processors of the user's own."""
    if callable(values) or not isinstance(values, Sequence) or not all(callable(value) for value in values):
        hint = "Each is called with (logits, context); see core.generation.Processor."
        raise UsageError("processors must be a list of callables", found=shown(values), hint=hint)
    return tuple(values)
