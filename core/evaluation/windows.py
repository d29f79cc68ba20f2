"""Strided windows over a text: which tokens are read together, and which of them are scored.

The windows of Hugging Face's recipe (transformers' documentation, "Perplexity of fixed-length models").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens ``start`` to ``stop`` are read; those from ``first`` on are scored."""

    start: int
    stop: int
    first: int

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return self.stop - self.first

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens read, and tokens scored: windows of one shape can be rows of one batch."""
        return self.stop - self.start, self.scored


def plan_windows(length: int, context: int, stride: int) -> Iterator[Window]:
    """The windows over ``length`` tokens, each ``context`` long (the last may be shorter) and ``stride`` after the one
    before.

    The first window scores all its tokens except the first of the text, which has no token before it (with a tokenizer
    that adds BOS, that is BOS; later windows have none). Every other window scores its new tokens. So each token but
    the first is scored exactly once, given all tokens of its window before it: between ``context - stride`` and
    ``context - 1`` tokens, once the text is that long. With ``stride == context`` the windows are disjoint, and as in
    the recipe the first token of each is not scored.
    """
    seen = 0
    for start in range(0, length, stride):
        stop = min(start + context, length)
        first = max(seen, start + 1)
        if first < stop:
            yield Window(start, stop, first)
        if stop == length:
            return
        seen = stop


def batches(windows: Iterator[Window], tokens: int) -> Iterator[list[Window]]:
    """Groups neighbouring windows of one shape, in order; a batch reads at most ``tokens`` (or is one window)."""
    for (read, _), group in itertools.groupby(windows, lambda window: window.shape):
        size = max(1, tokens // read)
        while batch := list(itertools.islice(group, size)):
            yield batch
