"""How many prompt tokens are read at once, where that is a question of time."""

from __future__ import annotations

import weakref

from core.device import backend

_SECONDS = 0.7  # of a chunk: an interrupt is answered, and progress shown, within a second
_FIRST = 64  # tokens, while nothing is known of the speed
_speeds: dict[int, tuple[weakref.ref[object], float]] = {}
"""A model's id → the model, and the tokens a second at which its last chunk was read."""
_LEAST = 8
_GROWTH = 8  # of a chunk beside the one before, whose tokens may have been slower for their small number


class ChunkSize:
    """The size of a prompt's next chunk: on a CPU as many tokens as take about 0.7 s, elsewhere always the same.

    Args:
        most: tokens of a chunk.
        model: the model that reads the prompt. Its last speed sets the size of the first chunk. None: a small one.
        fixed: always so many, as for models whose rotary frequencies depend on where a chunk ends.

    Attributes:
        tokens: of the next chunk.
    """

    def __init__(self, most: int, model: object = None, *, fixed: bool = False) -> None:
        self._most = most
        self._model = model
        self._fixed = fixed or backend() != "cpu"
        self.tokens = most if self._fixed else min(most, self._first())

    def _first(self) -> int:
        known = _speeds.get(id(self._model))
        if known is None or known[0]() is not self._model:
            return _FIRST
        return max(_LEAST, int(known[1] * _SECONDS))

    def took(self, tokens: int, seconds: float) -> None:
        """Notes how long a chunk took."""
        if self._fixed:
            return
        speed = tokens / max(seconds, 1e-6)
        if self._model is not None:
            key = id(self._model)
            _speeds[key] = weakref.ref(self._model, lambda _: _speeds.pop(key, None)), speed
        fit = int(speed * _SECONDS)
        self.tokens = min(self._most, max(_LEAST, min(fit, _GROWTH * tokens)))
