"""How many prompt tokens may go between two decode steps, from what the last steps have taken.

Knows durations and counts; knows no model.
"""

from __future__ import annotations

from collections import deque
from statistics import median

_LEAST = 16  # tokens of the smallest chunk
_MOST, _LITTLE = 2.4, 1.6  # steps with prompt tokens take so many undisturbed ones: above and below, the chunk changes
_KNOWN = 3  # undisturbed steps to have seen


class Pace:
    """The size of prompt chunks while other requests decode.

    It begins small and doubles while there is time, so that the first chunks are no surprise to those who wait.

    Args:
        limit: tokens at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._size = min(limit, _LEAST)
        self._undisturbed: deque[float] = deque(maxlen=9)

    @property
    def chunk(self) -> int:
        """Tokens of the next chunk; a quarter of the limit as long as nothing is known of undisturbed steps."""
        return self._size if len(self._undisturbed) >= _KNOWN else max(1, self.limit // 4)

    def record(self, seconds: float, prompt_tokens: int) -> None:
        """Takes note of one decode step, before which so many prompt tokens were processed."""
        if prompt_tokens == 0:
            self._undisturbed.append(seconds)
        elif len(self._undisturbed) >= _KNOWN and prompt_tokens == self._size:
            ratio = seconds / median(self._undisturbed)
            if ratio > _MOST:
                self._size = max(min(_LEAST, self.limit), self._size // 2)
            elif ratio < _LITTLE:
                self._size = min(self.limit, self._size * 2)
