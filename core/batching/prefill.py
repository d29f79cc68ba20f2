"""``Reading``: prompts that are read together into one cache, chunk by chunk."""

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
    """Some tokens of prompts that are read together.

    Attributes:
        reading: the prompts; their cache takes the tokens in.
        tokens: int32 ``[rows, width]``.
        counts: real tokens of each row; None when there is no padding.
        size: tokens of the longest row.
    """

    reading: Reading
    tokens: mx.array
    counts: list[int] | None
    size: int


class Reading:
    """Prompts that are read together into one cache: one prompt of any length, or several that fit one call.

    Args:
        rows: the requests.
        cache: for these rows; holds the prefix that they continue.
    """

    def __init__(self, rows: Sequence[Row], cache: Cache) -> None:
        self.rows = list(rows)
        self.cache = cache
        self._ids = [row.request.prompt_ids[held:-1] for row, held in zip(rows, cache.lengths, strict=True)]
        self._done = 0
        # A cache that already holds tokens has its buffers.
        self._unallocated = [] if max(cache.lengths) else cache.arrays()

    def allocate(self, nbytes: int) -> bool:
        """Allocates about ``nbytes`` of the cache's buffers. Returns False when so few are left that a pass may
        allocate them.

        A device takes longer than a step to allocate the buffers of a long prompt at once.
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
        """Tokens of the longest prompt that are not read yet."""
        return max(map(len, self._ids)) - self._done

    def cut(self, model: Any, budget: int) -> Chunk:
        """The next chunk: at most ``budget`` tokens of all rows together, but at least one of each."""
        held = max(self.cache.lengths)
        size = chunk_length(held, self.left, max(1, budget // len(self.rows)))
        parts = [ids[self._done : self._done + size] for ids in self._ids]
        counts = [len(part) for part in parts]
        width = padded_length(model, held, size)
        tokens = mx.array([part + [0] * (width - len(part)) for part in parts], dtype=mx.int32)
        return Chunk(self, tokens, counts if min(counts) < width else None, size)

    def took(self, chunk: Chunk) -> int:
        """Records that the model was given a chunk; returns its number of prompt tokens."""
        self._unallocated = []
        mx.async_eval(self.cache.arrays())
        self._done += chunk.size
        return chunk.size * len(self.rows)

    def read(self, model: Any, budget: int, *, wait: bool) -> int:
        """Gives the device one chunk without a decode step; returns its number of tokens.

        Args:
            model: a ``core.nn.Decoder``.
            budget: tokens at most.
            wait: until the device has finished the chunk before.
        """
        if self.left == 0:
            return 0
        if self._done and wait:
            mx.eval(self.cache.arrays())  # otherwise the activations of all chunks would be in memory together
        chunk = self.cut(model, budget)
        with inference():
            model.hidden_states(chunk.tokens, self.cache, chunk.counts)
        return self.took(chunk)
