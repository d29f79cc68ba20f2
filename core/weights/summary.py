"""Long lists of tensor names, made short: indices that differ are shown as ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


def summarise(names: Iterable[str], limit: int = 4) -> str:
    """``layers.0.w, layers.1.w, …`` → ``layers.{0-31}.w (32 tensors)``; at most ``limit`` patterns."""
    patterns: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        indices = tuple(int(match) for match in _INDEX.findall(name))
        patterns.setdefault(_INDEX.sub("{}", name), []).append(indices)
    shown = [_show(pattern, indices) for pattern, indices in list(patterns.items())[:limit]]
    if len(patterns) > limit:
        shown.append(f"and {len(patterns) - limit} more patterns")
    return ", ".join(shown)


def _show(pattern: str, found: list[tuple[int, ...]]) -> str:
    ranges = [_ranges({indices[i] for indices in found}) for i in range(len(found[0]))]
    text = pattern.format(*ranges)
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
