"""The progress bar of a load or a conversion: on stderr, and only where a person watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from core.cli.terminal import is_terminal


@contextlib.contextmanager
def loading_progress(label: str = "loading") -> Iterator[Callable[[int, int], None] | None]:
    """The callback for ``core.load`` or ``core.convert``, which then shows downloads too; None where nobody watches."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn(label), BarColumn(), DownloadColumn(binary_units=True))
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(label)

    def advance(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        bar.start()  # not before the first weights: a download draws bars of its own

    try:
        yield advance
    finally:
        bar.stop()
