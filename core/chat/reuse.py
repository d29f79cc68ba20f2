"""One cache for a conversation: what it holds, and what of a prompt is new to it.

Knows ids and a cache that rewinds, or refuses; knows no text. Each prompt is compared as ids with what was processed,
so that it may differ from the last one anywhere, and costs only what follows the first difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core.errors import CacheError
from core.nn import Cache


@dataclass
class Held:
    """A cache with the ids in it.

    Attributes:
        make: makes an empty cache for one sequence.
        cache: None until it is needed.
        ids: the ids that the cache holds, in order.
    """

    make: Callable[[], Cache]
    cache: Cache | None = None
    ids: list[int] = field(default_factory=list)

    def prepare(self, prompt: Sequence[int]) -> tuple[Cache, list[int]]:
        """The cache, holding as much of the beginning of ``prompt`` as it can, and the ids that are to be processed.

        At least one id is left to process, since it takes a step to know what follows it. A cache that cannot go back
        as far as the prompt asks (a sliding window, a recurrent state) is replaced by an empty one.
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
        """Says which ids a generation added: the prompt's and its own, of which the cache may lack the last ones."""
        assert self.cache is not None
        self.ids = [*self.ids, *ids][: self.cache.length]

    def forget(self) -> None:
        """Lets the cache go, with its memory."""
        self.cache, self.ids = None, []


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
