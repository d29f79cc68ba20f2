"""``Step``: the positions and the cache that a block gets in one step of a model.

The block protocol is ``block(x, step)``. A step has positions as arrays and no integer that depends on the sequence, so
a block that uses it works for one sequence or many, each at its own position, cached or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from core.errors import CacheError
from core.nn.cache import BlockCache, Cache
from core.nn.span import Reach, Write
from core.nn.state import State
from core.nn.view import View


class Step:
    """The step as one block sees it.

    Attributes:
        positions: int32 ``[batch]``, the position of each row's first token in this step.
        lengths: int32 ``[batch]``, how many of the step's tokens are real in each row (the rest is padding on the
            right), or None when all are.
    """

    __slots__ = ("_block", "_plan", "lengths", "positions")

    def __init__(self, plan: StepPlan, block: BlockCache | None) -> None:
        self._plan = plan
        self._block = block
        self.positions = plan.positions
        self.lengths = plan.lengths

    @property
    def state(self) -> State | None:
        """The arrays of a block whose ``CacheSpec`` is a state; None when the step has no cache."""
        if self._block is not None and not isinstance(self._block, State):
            raise CacheError("this block's CacheSpec keeps keys and values, not state; use step.attend")
        return self._block

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, window: int | None = None
    ) -> mx.array:
        """Causal attention of this step's queries to its own and all cached keys; caches the new keys and values.

        Query *i* sees the keys at positions up to its own and, with a ``window``, exactly the last ``window`` of them,
        itself included. Grouped queries need no repeated keys.

        Args:
            queries: ``[batch, heads, seq, head_dim]``, rotated.
            keys, values: ``[batch, kv_heads, seq, head_dim]``, keys rotated.
            scale: factor on the query-key products.
            window: tokens; None sees everything. Where the cache has ``max_kv_tokens``, the smaller of the two holds.

        Returns:
            ``[batch, heads, seq, value_head_dim]``.

        Raises:
            CacheError: the block's cache keeps state, or fewer tokens than ``window`` asks for.
        """
        block = self._block
        if block is None:
            mask = self._plan.view(None, window).mask
            return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
        if isinstance(block, State):
            raise CacheError(
                "this block attends, but its CacheSpec keeps state", hint="Return CacheSpec.full or .sliding."
            )
        reach = block.reach
        if isinstance(reach, int) and (window is None or window > reach):
            raise CacheError(f"a cache of {reach} tokens cannot serve attention to {window or 'all'} tokens")
        return block.attend(queries, keys, values, self._plan.writes[reach], self._plan.view(reach, window), scale)


class StepPlan:
    """What all blocks share in one step: positions, how each kind of cache is written, and the masks.

    Args:
        batch, seq: shape of the tokens.
        blocks: number of blocks in the model.
        cache: the model's cache, or None to attend within the step only.
        counts: real tokens of each row; None when there is no padding.

    Attributes:
        batch, seq, counts: as given.
        starts: position of each row's first token.
        writes: for each reach, how its blocks write.
        blocks: the cache of each block; None where there is none.
    """

    def __init__(
        self, batch: int, seq: int, blocks: int, cache: Cache | None = None, counts: Sequence[int] | None = None
    ) -> None:
        if cache is not None and len(cache.blocks) != blocks:
            held = len(cache.blocks)
            raise CacheError("this cache belongs to another model", expected=f"{blocks} blocks", found=f"{held} blocks")
        if counts is not None and (len(counts) != batch or min(counts) < 0 or max(counts) > seq):
            raise CacheError(
                "lengths do not fit the tokens", expected=f"{batch} integers from 0 to {seq}", found=list(counts)
            )
        self.batch, self.seq, self.counts = batch, seq, counts
        self.lengths = None if counts is None else mx.array(list(counts), dtype=mx.int32)
        self.starts = [0] * batch if cache is None else list(cache.lengths)
        self.positions = mx.zeros((batch,), dtype=mx.int32) if cache is None else cache.positions()
        self.writes: dict[Reach, Write] = {} if cache is None else cache.begin(batch, seq, counts)
        self.blocks: Sequence[BlockCache | None] = [None] * blocks if cache is None else cache.blocks
        self._views: dict[tuple[Reach, int | None], View] = {}

    @property
    def plans(self) -> Sequence[StepPlan]:
        """A list of this plan only."""
        return [self]

    @property
    def real(self) -> Sequence[int]:
        """Tokens of each row that are not padding."""
        return [self.seq] * self.batch if self.counts is None else self.counts

    def steps(self) -> list[Step]:
        """The step as each block sees it."""
        return [Step(self, block) for block in self.blocks]

    def view(self, reach: Reach, window: int | None) -> View:
        """The slots that queries with this window see in the caches with this reach; built once a step."""
        key = reach, window
        if key not in self._views:
            self._views[key] = View(self.starts, self.seq, self.writes.get(reach), reach, window)
        return self._views[key]
