"""Every row's tokens, prompt and output, on the device; written without waiting for them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

_LEAST = 64
_NONE = -1


class History:
    """Token ids of rows of different lengths in one padded array, grown by doubling.

    Attributes:
        tokens: int32 ``[rows, capacity]``, -1 behind a row's end.
        lengths: tokens of each row.
    """

    def __init__(self) -> None:
        self.tokens = mx.zeros((0, _LEAST), dtype=mx.int32)
        self.lengths: list[int] = []
        self._prompts: list[int] = []

    def join(self, ids: Sequence[int]) -> None:
        """Appends a row."""
        self._grow(len(ids) + 1)
        row = mx.array([*ids, *[_NONE] * (self.tokens.shape[1] - len(ids))], dtype=mx.int32)
        self.tokens = mx.concatenate([self.tokens, row[None]])
        self.lengths.append(len(ids))
        self._prompts.append(len(ids))

    def leave(self, row: int) -> None:
        """Removes a row; later ones move up."""
        self.tokens = without(self.tokens, row)
        del self.lengths[row], self._prompts[row]

    def record(self, ids: mx.array) -> None:
        """Appends one id ``[rows]`` to each row."""
        self._grow(max(self.lengths) + 1)
        places = mx.array(self.lengths, dtype=mx.int32)[:, None]
        self.tokens = mx.put_along_axis(self.tokens, places, ids.astype(mx.int32)[:, None], axis=1)
        self.lengths = [length + 1 for length in self.lengths]

    def row(self, row: int) -> mx.array:
        """int32 ``[n]``, one row without padding."""
        return self.tokens[row, : self.lengths[row]]

    def generated(self, row: int) -> int:
        """Tokens recorded since the row joined."""
        return self.lengths[row] - self._prompts[row]

    def _grow(self, needed: int) -> None:
        capacity = self.tokens.shape[1]
        while capacity < needed:
            capacity *= 2
        self.tokens = padded(self.tokens, capacity, _NONE)


def padded(array: mx.array, capacity: int, value: int) -> mx.array:
    """``[rows, n]`` with columns of ``value`` appended, up to ``capacity``."""
    missing = capacity - array.shape[1]
    return array if missing == 0 else mx.pad(array, [(0, 0), (0, missing)], constant_values=value)


def without(array: mx.array, row: int) -> mx.array:
    """``[rows, n]`` without one row."""
    return mx.concatenate([array[:row], array[row + 1 :]])
