"""``Pace``: chooses how many prompt tokens go with a decode step, from the durations of the last steps."""

from __future__ import annotations

from collections import deque
from statistics import median_low

from core.device import backend

_LEAST = {"cpu": 16, "metal": 64, "cuda": 64}
"""Tokens of the smallest chunk. The device reads so many in about the time of a few (benchmarks/LOG.md, 10; Metal's
number is a guess)."""
_MOST = 2.6  # the longest step with a chunk, in times of a step without one
_CHEAP = 1.1
"""The same in times of the step with the cheapest chunk, which reads all weights: more tokens may cost almost none."""
_KNOWN = 3  # steps without a chunk to measure first
_RECENT = 3  # the last steps of each chunk size that count; their lower median, as a compilation makes outliers


class Pace:
    """The size of prompt chunks while other requests decode.

    It begins small. It doubles while the expected duration of the next size is short enough; that is extrapolated from
    the durations of this size and the last.

    Args:
        limit: tokens at most.
        least: tokens of the smallest chunk; None takes the number for the device.
    """

    def __init__(self, limit: int, least: int | None = None) -> None:
        self.limit = limit
        self._least = self._size = min(limit, _LEAST[backend()] if least is None else least)
        self._undisturbed: deque[float] = deque(maxlen=9)
        self._took: dict[int, deque[float]] = {}

    @property
    def chunk(self) -> int:
        """Tokens of the next chunk; a quarter of the limit until steps without a chunk have been measured."""
        return self._size if len(self._undisturbed) >= _KNOWN else max(1, self.limit // 4)

    def record(self, seconds: float, prompt_tokens: int) -> None:
        """Records the duration of one decode step, with which ``prompt_tokens`` were processed."""
        if prompt_tokens == 0:
            self._undisturbed.append(seconds)
            # The next prompt starts with few keys to attend to.
            self._took = {size: took for size, took in self._took.items() if size == self._least}
            return
        self._took.setdefault(prompt_tokens, deque(maxlen=_RECENT)).append(seconds)
        if len(self._undisturbed) < _KNOWN or prompt_tokens != self._size:
            return
        cheapest = min(map(min, self._took.values()))  # the minimum, as any disturbance makes a step longer
        most = max(_MOST * median_low(self._undisturbed), _CHEAP * cheapest)
        if median_low(self._took[self._size]) > most and self._size > self._least:
            self._size = max(self._least, self._size // 2)
        elif self._expected(min(self.limit, self._size * 2)) < most:
            self._size = min(self.limit, self._size * 2)

    def _expected(self, size: int) -> float:
        """Expected seconds of a step with a chunk twice as large: as measured; else from the slope so far; else as
        now."""
        seen = self._took.get(size, ())
        if len(seen) > 1:  # a single measurement may be an outlier
            return median_low(seen)
        now, smaller = median_low(self._took[self._size]), self._took.get(self._size // 2)
        return now if smaller is None else now + 2 * max(0.0, now - median_low(smaller))
