"""How many prompt tokens may go between two decode steps, from what the last steps have taken.

Knows durations and counts; knows no model.
"""

from __future__ import annotations

from collections import deque
from statistics import median

LEAST = 64
"""Tokens: fewer do not fill a device."""
_MOST, _LITTLE = 2.4, 1.6  # a step with prompt tokens, in undisturbed steps: above and below, the chunk changes


class Pace:
    """The size of prompt chunks while other requests decode.

    Args:
        limit: tokens at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.chunk = limit
        self._undisturbed: deque[float] = deque(maxlen=9)

    def record(self, seconds: float, prompt_tokens: int) -> None:
        """Takes note of one decode step, before which so many prompt tokens were processed."""
        if prompt_tokens == 0:
            self._undisturbed.append(seconds)
            return
        if len(self._undisturbed) < 3 or prompt_tokens < self.chunk // 2 or prompt_tokens > self.limit:
            return
        ratio = seconds / median(self._undisturbed)
        if ratio > _MOST:
            self.chunk = max(min(LEAST, self.limit), self.chunk // 2)
        elif ratio < _LITTLE:
            self.chunk = min(self.limit, self.chunk * 2)
