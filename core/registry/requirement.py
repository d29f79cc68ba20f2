"""Checks whether this version of core satisfies the requirements of a distribution."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable

from core.registry.claim import normalise
from core.version import __version__

DISTRIBUTION = "corelm"

_COMPARE: dict[str, Callable[[list[int], list[int]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
_RELEASE = re.compile(r"\d+(?:\.\d+)*")
_LONG = 200  # characters; real requirements are shorter
_PLAIN = re.compile(r"(>=|<=|>|<|==|!=)\s*(\d+(?:\.\d+)*)")


def refusal(lines: Iterable[str]) -> str | None:
    """Why these requirements (``Requires-Dist``) exclude this version of core; None where they do not."""
    for line in lines:
        if DISTRIBUTION not in normalise(line):
            continue
        fits = _fits_plainly(line, __version__)
        if fits is None:
            fits = _fits(line, __version__)
            if fits is None:
                return f"its requirement {_shortened(line)!r} is malformed"
        if not fits:
            return f"it requires {_shortened(line)}, and this is {DISTRIBUTION} {__version__}"
    return None


def _fits_plainly(line: str, version: str) -> bool | None:
    """The answer for plain comparisons of releases, ``corelm>=0.1,<0.2``; None for any other line.

    Nearly every plugin has such a line, and importing ``packaging`` costs more than reading a hundred of them.
    """
    name = re.match(r"[\w.-]+", line)
    if name is None or normalise(name[0]) != DISTRIBUTION or not _RELEASE.fullmatch(version) or len(line) > _LONG:
        return None
    wanted = line[name.end() :].strip()
    parts = [_PLAIN.fullmatch(part.strip()) for part in wanted.split(",")] if wanted else []
    if not all(parts):
        return None
    ours = _numbers(version)
    return all(_COMPARE[part[1]](ours, _numbers(part[2])) for part in parts if part is not None)


def _numbers(release: str) -> list[int]:
    """A release as numbers that compare: 1.0 equals 1."""
    numbers = [int(number) for number in release.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def _fits(line: str, version: str) -> bool | None:
    """The answer for any line; None for a malformed line about core."""
    from packaging.requirements import Requirement

    try:
        requirement = Requirement(line)
        if normalise(requirement.name) != DISTRIBUTION:
            return True
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            return True
        # A requirement by URL has no versions; the installer has checked it.
        return requirement.specifier.contains(version, prereleases=True)
    except Exception:  # besides its own errors: too many digits for int(), too many brackets for the stack
        return None if re.match(rf"{DISTRIBUTION}(?![\w-])", normalise(line)) else True


def _shortened(line: str) -> str:
    return line if len(line) <= _LONG else f"{line[: _LONG - 1]}…"
