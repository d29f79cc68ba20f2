"""How many prompt tokens may go into a decode step, from what the last steps have taken.

Knows durations and counts; knows no model.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low

from core.device import backend

_LEAST = {"cpu": 16, "metal": 64, "cuda": 64}
"""Tokens of the smallest chunk: what the device reads in about the time of a few (benchmarks/LOG.md, 10; Metal's is a
guess)."""
_MOST = 2.6  # undisturbed steps that a step with a chunk may take
_CHEAP = 1.1
"""… or so many steps with the cheapest chunk, which reads all weights: more tokens may cost nearly nothing."""
_KNOWN = 3  # undisturbed steps to have seen
_RECENT = 3  # steps with chunks of one size that count; the lower median, as compiling something makes outliers


class Pace:
    """The size of prompt chunks while other requests decode.

    It begins small, and doubles while the next size is not expected to take too long, by what this size takes more than
    the last.

    Args:
        limit: tokens at most.
        least: tokens of the smallest chunk; None: what suits the device.
    """

    def __init__(self, limit: int, least: int | None = None) -> None:
        self.limit = limit
        self._least = self._size = min(limit, _LEAST[backend()] if least is None else least)
        self._undisturbed: deque[float] = deque(maxlen=9)
        self._took: dict[int, deque[float]] = {}

    @property
    def chunk(self) -> int:
        """Tokens of the next chunk; a quarter of the limit as long as nothing is known of undisturbed steps."""
        return self._size if len(self._undisturbed) >= _KNOWN else max(1, self.limit // 4)

    def record(self, seconds: float, prompt_tokens: int) -> None:
        """Takes note of one decode step, with which so many prompt tokens were processed."""
        if prompt_tokens == 0:
            self._undisturbed.append(seconds)
            # The next prompt begins at its beginning, where there is less to attend to.
            self._took = {size: took for size, took in self._took.items() if size == self._least}
            return
        self._took.setdefault(prompt_tokens, deque(maxlen=_RECENT)).append(seconds)
        if len(self._undisturbed) < _KNOWN or prompt_tokens != self._size:
            return
        cheapest = min(map(min, self._took.values()))  # whatever disturbs a step makes it longer
        most = max(_MOST * median_low(self._undisturbed), _CHEAP * cheapest)
        if median_low(self._took[self._size]) > most and self._size > self._least:
            self._size = max(self._least, self._size // 2)
        elif self._expected(min(self.limit, self._size * 2)) < most:
            self._size = min(self.limit, self._size * 2)

    def _expected(self, size: int) -> float:
        """Seconds of a step with a chunk of twice the size: as seen, else by the slope so far, else as now."""
        seen = self._took.get(size, ())
        if len(seen) > 1:  # one alone may be an outlier
            return median_low(seen)
        now, smaller = median_low(self._took[self._size]), self._took.get(self._size // 2)
        return now if smaller is None else now + 2 * max(0.0, now - median_low(smaller))
