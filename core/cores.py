"""Counts the cores that this process may use, for everything here that starts threads of its own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(variable: str = "OMP_NUM_THREADS") -> int:
    """The number of threads that can run at once, at least 1.

    It is the least of three: the logical cores that the scheduler gives this thread, the processor time that the
    control groups (versions 1 and 2) allow, rounded up to whole cores, and the environment variable.

    Args:
        variable: an environment variable that users set to a number of threads; ignored where it is not a number
            above 0. Of a list, such as ``4,2``, the first number counts.
    """
    limits = [_scheduled(), *(max(1, math.ceil(quota)) for quota in _quotas())]
    asked = asked_threads(variable)
    return max(1, min(limits if asked is None else [*limits, asked]))


def asked_threads(variable: str) -> int | None:
    """The number of threads that an environment variable asks for; None where it asks for none."""
    first = os.environ.get(variable, "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) > 0 else None


def _scheduled() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS
        return os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """The processor time of each control group that this process is in, in cores, where it has a limit."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:  # not on macOS
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            for folder in _folders(_GROUPS, path):
                yield from _quota(_words(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for folder in _folders(_GROUPS / "cpu", path):
                yield from _quota(_words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us"))


def _folders(root: Path, path: str) -> list[Path]:
    """The folders of a group and of all that it is in. A container may see its own group at the root instead."""
    names = [name for name in PurePosixPath(path).parts if name not in ("/", "..")]
    return [root.joinpath(*names[:count]) for count in range(len(names) + 1)]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _quota(words: list[str]) -> Iterator[float]:
    """Cores, from microseconds of processor time in each period and microseconds of a period."""
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]) > 0:
        yield int(words[0]) / int(words[1])
