"""Prompts that are read in together, chunk by chunk. Knows tokens and a cache; knows nothing of whose turn it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from core.batching.row import Row
from core.generation.padding import chunk_length, padded_length
from core.kernels import inference
from core.nn import Cache


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of prompts that are read in together.

    Attributes:
        reading: whose they are; its cache takes them in.
        tokens: int32 ``[rows, width]``.
        counts: real tokens of each row; None when there is no padding.
        size: tokens of the longest row.
    """

    reading: Reading
    tokens: mx.array
    counts: list[int] | None
    size: int


class Reading:
    """Prompts that are read in together, in one cache: one of any length, or several that fit one call.

    Args:
        rows: whose prompts.
        cache: for these rows; holds what they continue.
    """

    def __init__(self, rows: Sequence[Row], cache: Cache) -> None:
        self.rows = list(rows)
        self.cache = cache
        self._ids = [row.request.prompt_ids[held:-1] for row, held in zip(rows, cache.lengths, strict=True)]
        self._done = 0
        # A cache that holds something has its buffers.
        self._unallocated = [] if max(cache.lengths) else cache.arrays()

    def allocate(self, nbytes: int) -> bool:
        """Allocates buffers of the cache, about so many bytes; false where no more are left than a pass may allocate.

        The buffers of a long prompt take a device longer than a step, all at once.
        """
        if sum(array.nbytes for array in self._unallocated) <= nbytes:
            return False
        now: list[mx.array] = []
        while self._unallocated and sum(array.nbytes for array in now) < nbytes:
            now.append(self._unallocated.pop())
        mx.async_eval(now)
        return True

    @property
    def left(self) -> int:
        """Tokens of the longest prompt that are still to be read."""
        return max(map(len, self._ids)) - self._done

    def cut(self, model: Any, budget: int) -> Chunk:
        """The next chunk, of at most ``budget`` tokens of all rows together, where that is one of each."""
        held = max(self.cache.lengths)
        size = chunk_length(held, self.left, max(1, budget // len(self.rows)))
        parts = [ids[self._done : self._done + size] for ids in self._ids]
        counts = [len(part) for part in parts]
        width = padded_length(model, held, size)
        tokens = mx.array([part + [0] * (width - len(part)) for part in parts], dtype=mx.int32)
        return Chunk(self, tokens, counts if min(counts) < width else None, size)

    def took(self, chunk: Chunk) -> int:
        """The model has been given a chunk; returns how many tokens of prompts that was."""
        self._unallocated = []
        mx.async_eval(self.cache.arrays())
        self._done += chunk.size
        return chunk.size * len(self.rows)

    def read(self, model: Any, budget: int, *, wait: bool) -> int:
        """Gives the device one chunk by itself; returns how many tokens that is.

        Args:
            wait: until the device has finished the chunk before.
        """
        if self.left == 0:
            return 0
        if self._done and wait:
            mx.eval(self.cache.arrays())  # or the activations of all chunks would wait in memory together
        chunk = self.cut(model, budget)
        with inference():
            model.hidden_states(chunk.tokens, self.cache, chunk.counts)
        return self.took(chunk)
