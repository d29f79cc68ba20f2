"""``CacheSpec``: describes what a block keeps between steps.

A plugin's ``make_cache`` returns one of these for each block; ``core`` allocates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What one block keeps between steps. Build it with ``full``, ``sliding`` or ``state``.

    Attributes:
        kind: ``full`` keeps every token's key and value, ``window`` the last ``window`` tokens' (and a bounded spare),
            ``state`` named arrays that each step replaces.
        heads: key/value heads; head_dim, value_head_dim: their features.
        window: keys that a query sees, itself included.
        shapes: for ``state``, name → shape without the batch axis.
        dtype: storage dtype; ``None`` takes the dtype of what is first written.
    """

    kind: Literal["full", "window", "state"]
    heads: int = 0
    head_dim: int = 0
    value_head_dim: int = 0
    window: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtype: mx.Dtype | None = None

    @classmethod
    def full(
        cls, heads: int, head_dim: int, value_head_dim: int | None = None, dtype: mx.Dtype | None = None
    ) -> CacheSpec:
        """Keys and values of every token."""
        return cls("full", heads, head_dim, value_head_dim or head_dim, dtype=dtype)

    @classmethod
    def sliding(
        cls, window: int, heads: int, head_dim: int, value_head_dim: int | None = None, dtype: mx.Dtype | None = None
    ) -> CacheSpec:
        """Keys and values of the last ``window`` tokens."""
        return cls("window", heads, head_dim, value_head_dim or head_dim, window, dtype=dtype)

    @classmethod
    def state(cls, shapes: Mapping[str, tuple[int, ...]], dtype: mx.Dtype = mx.float32) -> CacheSpec:
        """Named arrays, zero at first; for recurrent and convolutional blocks."""
        return cls("state", shapes=dict(shapes), dtype=dtype)

    def bytes_at(self, tokens: int, dtype: mx.Dtype) -> int:
        """Bytes that one sequence of ``tokens`` tokens takes under this spec, if stored as ``dtype``."""
        size = (self.dtype or dtype).size
        if self.kind == "state":
            total = 0
            for shape in self.shapes.values():
                count = 1
                for side in shape:
                    count *= side
                total += count
            return total * size
        kept = tokens if self.window is None else min(tokens, self.window)
        return kept * self.heads * (self.head_dim + self.value_head_dim) * size
