"""``Held``: the cache of a conversation with its ids, reused for the next prompt.

Each prompt is compared, id by id, with the processed ones. So it may differ from the last prompt anywhere, and only the
tokens after the first difference are processed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core.errors import CacheError
from core.nn import Cache


@dataclass
class Held:
    """A cache with its ids.

    Attributes:
        make: makes an empty cache for one sequence.
        cache: None until it is needed.
        ids: the ids that the cache holds, in order.
    """

    make: Callable[[], Cache]
    cache: Cache | None = None
    ids: list[int] = field(default_factory=list)

    def prepare(self, prompt: Sequence[int]) -> tuple[Cache, list[int]]:
        """The cache with as much of the beginning of ``prompt`` as possible, and the ids still to process.

        At least one id is left to process, since the next token comes from a step. A cache that cannot be cut as far
        back as the prompt requires (a sliding window, a recurrent state) is replaced by an empty one.
        """
        common = min(_common(self.ids, prompt), len(prompt) - 1)
        if self.cache is not None and self.cache.length > common:
            try:
                self.cache.rewind(self.cache.length - common)
            except CacheError:
                self.forget()
        if self.cache is None:
            self.cache, common = self.make(), 0
        self.ids = list(prompt[:common])
        return self.cache, list(prompt[common:])

    def extend(self, ids: Sequence[int]) -> None:
        """Records the ids after a generation: the prompt's and the generated ones. The cache may lack the last ones."""
        assert self.cache is not None
        self.ids = [*self.ids, *ids][: self.cache.length]

    def forget(self) -> None:
        """Frees the cache and its memory."""
        self.cache, self.ids = None, []


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
