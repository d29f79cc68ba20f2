"""Other values for the keys of a config: valid ones, and ones that every config class must refuse."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]


def leaves(raw: Mapping[str, Any], above: Path = ()) -> Iterator[Path]:
    """The path of every value except non-empty objects."""
    for key, value in raw.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*above, key))
        elif key != "model_type":
            yield (*above, key)


def get(raw: Mapping[str, Any], path: Path) -> Any:
    """The value at a path."""
    value: Any = raw
    for key in path:
        value = value[key]
    return value


def put(raw: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy with another value at a path."""
    changed = copy.deepcopy(dict(raw))
    get(changed, path[:-1])[path[-1]] = value
    return changed


def take(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A copy without a path."""
    changed = copy.deepcopy(dict(raw))
    del get(changed, path[:-1])[path[-1]]
    return changed


def alternatives(value: Any) -> list[Any]:
    """Values of the same type that are different enough to have an effect; for ``null``, values of several types."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [other for other in (value + 1, value * 2, value // 2, value - 1) if other > 0 and other != value]
    if isinstance(value, float):
        return [value * 1.5, value * 100] if value else [0.5]
    if isinstance(value, str):
        return ["no_such_value", "gelu"]
    if isinstance(value, list) and value:
        return [[other, *value[1:]] for other in alternatives(value[0])] + [[*reversed(value)]]
    return [8, 0.5, True] if value is None else []


def wrong_values(value: Any) -> list[Any]:
    """Values of another type, which a strict config refuses."""
    if isinstance(value, bool | int | float):
        return [str(value), [value]]
    if isinstance(value, str):
        return [12345]
    return ["a string"] if isinstance(value, list) else []
