"""Shortens long lists of tensor names: indices that differ are shown as ranges."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

_INDEX = re.compile(r"(?<=\.)[0-9]{1,9}(?=\.|$)")
_MAX_SHOWN = 160


def summarise(names: Iterable[str], limit: int = 4) -> str:
    """``layers.0.w, layers.1.w, …`` → ``layers.{0-31}.w (32 tensors)``; at most ``limit`` patterns."""
    patterns: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for name in names:
        indices = tuple(int(match) for match in _INDEX.findall(name))
        patterns.setdefault(tuple(_INDEX.split(name)), []).append(indices)
    shown = [_show(pattern, indices) for pattern, indices in list(patterns.items())[:limit]]
    if len(patterns) > limit:
        shown.append(f"and {len(patterns) - limit} more patterns")
    return ", ".join(shown)


def _show(between: tuple[str, ...], found: list[tuple[int, ...]]) -> str:
    ranges = [_ranges({indices[i] for indices in found}) for i in range(len(found[0]))]
    text = "".join(itertools.chain.from_iterable(itertools.zip_longest(between, ranges, fillvalue="")))
    # Names come from a file: their characters must not break the line or fill the screen.
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:_MAX_SHOWN])
    return text if len(found) == 1 else f"{text} ({len(found)} tensors)"


def _ranges(values: set[int]) -> str:
    if len(values) == 1:
        return str(*values)
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    return "{" + ",".join("-".join(str(bound) for bound in run) for run in runs) + "}"
