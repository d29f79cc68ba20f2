"""The shape of a step: everything that its CUDA text depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepShape:
    """Everything that the text of a step depends on.

    Attributes:
        widths: bits of a weight (4, 8, or 16 for bfloat16) of qkv, output, gate-up, down and head.
        windows: for each kind of cache, the keys that a query sees; 0 sees all.
        cache_kinds: for each layer, which kind.
    """

    batch: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    widths: tuple[int, int, int, int, int]
    embedding_width: int
    epsilons: tuple[float, float, float]
    rotary_factor: float
    windows: tuple[int, ...]
    cache_kinds: tuple[int, ...]
    tied: bool
    experts: int = 0
    chosen: int = 1

    @property
    def layers(self) -> int:
        return len(self.cache_kinds)

    @property
    def query_rows(self) -> int:
        return self.heads * self.head_dim

    @property
    def qkv_rows(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of qkv, output, gate-up, down and head, as one token meets them."""
        return (
            (self.qkv_rows, self.hidden),
            (self.hidden, self.query_rows),
            (2 * self.intermediate * self.chosen, self.hidden),
            (self.hidden, self.intermediate * self.chosen),
            (self.vocabulary, self.hidden),
        )
