"""Progress bars: on stderr, and only where a person watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from core.cli.terminal import is_terminal

Advance = Callable[[int, int], None]


def loading_progress(label: str = "loading") -> contextlib.AbstractContextManager[Advance | None]:
    """The callback for ``core.load`` or ``core.convert``, which then shows downloads too; None where nobody watches."""
    return _bar(label, of_bytes=True)


def evaluation_progress() -> contextlib.AbstractContextManager[Advance | None]:
    """The callback for ``core.evaluate``; None where nobody watches."""
    return _bar("evaluating", of_bytes=False)


def benchmark_progress() -> contextlib.AbstractContextManager[Advance | None]:
    """The callback for ``core.bench``; None where nobody watches."""
    return _bar("measuring", of_bytes=False)


def prompt_progress() -> contextlib.AbstractContextManager[Advance | None]:
    """The callback for ``LanguageModel.stream``, for prompts that take long; None where nobody watches."""
    return _bar("reading the prompt", of_bytes=False)


@contextlib.contextmanager
def _bar(label: str, *, of_bytes: bool) -> Iterator[Advance | None]:
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    counts = (DownloadColumn(binary_units=True),) if of_bytes else (MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn(label), BarColumn(), *counts, console=Console(stderr=True), transient=True)
    task = bar.add_task(label)

    def advance(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        bar.start()  # not before the first weights: a download draws bars of its own

    try:
        yield advance
    finally:
        bar.stop()
