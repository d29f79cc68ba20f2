"""The logits of one step on their way through the stages; sorted once, however many stages need them in order.

The logits themselves are never scaled: a temperature only divides where probabilities are computed, and multiplies the
noise at the end, so that a tiny one overflows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

_LARGEST = 3.4028235e38  # of float32


class Scores:
    """Logits that stages replace or hide parts of.

    Args:
        logits: ``[rows, vocab]``, any float dtype. NaN counts as impossible, infinity as the largest number.

    Attributes:
        temperature: float32 ``[rows, 1]``, what probabilities are taken at; None is 1.
    """

    __slots__ = ("_ascending", "_logits", "temperature")

    def __init__(self, logits: mx.array) -> None:
        self._logits = _sane(logits.astype(mx.float32))
        self._ascending: mx.array | None = None
        self.temperature: mx.array | None = None

    @property
    def logits(self) -> mx.array:
        """float32 ``[rows, vocab]``; hidden tokens are minus infinity."""
        return self._logits

    @logits.setter
    def logits(self, logits: mx.array) -> None:
        self._logits, self._ascending = logits, None

    def replace(self, logits: mx.array) -> None:
        """Takes logits of a stranger's making, with the same care as the model's."""
        self.logits = _sane(logits)

    @property
    def ascending(self) -> mx.array:
        """The logits, each row sorted."""
        if self._ascending is None:
            self._ascending = mx.sort(self._logits, axis=-1)
        return self._ascending

    def probabilities(self, logits: mx.array, largest: mx.array) -> mx.array:
        """Of ``logits`` ``[rows, n]`` whose largest are ``largest`` ``[rows, 1]``."""
        shifted = logits - largest
        return mx.softmax(shifted if self.temperature is None else shifted / self.temperature, axis=-1)

    def keep(self, threshold: mx.array) -> None:
        """Hides logits below ``threshold`` ``[rows, 1]``; equal ones stay, however many they are."""
        self._logits = mx.where(self._logits >= threshold, self._logits, -mx.inf)
        if self._ascending is not None:
            self._ascending = mx.where(self._ascending >= threshold, self._ascending, -mx.inf)

    def hide(self, hidden: mx.array) -> None:
        """Hides the logits at which ``hidden`` ``[rows, vocab]`` is true."""
        self.logits = mx.where(hidden, -mx.inf, self._logits)


def column(values: Sequence[float], dtype: mx.Dtype = mx.float32) -> mx.array:
    """One value a row, ``[rows, 1]``."""
    return mx.array(list(values), dtype=dtype)[:, None]


def _sane(logits: mx.array) -> mx.array:
    return mx.where(logits == logits, mx.minimum(logits, _LARGEST), -mx.inf)
