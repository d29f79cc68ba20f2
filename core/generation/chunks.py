"""How many prompt tokens are read at once, where that is a question of time."""

from __future__ import annotations

from core.device import backend

_SECONDS = 0.7  # of a chunk: an interrupt is answered, and progress shown, within a second
_FIRST = 64  # tokens, while nothing is known of the speed
_LEAST = 8
_GROWTH = 8  # of a chunk beside the one before, whose tokens may have been slower for their small number


class ChunkSize:
    """The size of a prompt's next chunk: on a CPU as many tokens as take about 0.7 s, elsewhere always the same.

    Args:
        most: tokens of a chunk.
        fixed: always so many, as for models whose rotary frequencies depend on where a chunk ends.

    Attributes:
        tokens: of the next chunk.
    """

    def __init__(self, most: int, *, fixed: bool = False) -> None:
        self._most = most
        self._fixed = fixed or backend() != "cpu"
        self.tokens = most if self._fixed else min(most, _FIRST)

    def took(self, tokens: int, seconds: float) -> None:
        """Notes how long a chunk took."""
        if self._fixed:
            return
        fit = int(tokens * _SECONDS / max(seconds, 1e-6))
        self.tokens = min(self._most, max(_LEAST, min(fit, _GROWTH * tokens)))
