"""``Cache``: what a model keeps between steps, for a batch of sequences with a position each.

One ``Cache`` serves a whole model. It has one block cache for each block, of the kind that the block's spec asks for,
and the number of tokens of each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from core.errors import CacheError
from core.nn.key_values import KeyValues
from core.nn.quantized_kv import QuantizedKeyValues
from core.nn.settings import CacheSettings
from core.nn.span import Reach, Span, Write
from core.nn.spec import CacheSpec
from core.nn.state import State

__all__ = ["BlockCache", "Cache", "KeyValues", "QuantizedKeyValues", "SlotCache", "State"]

SlotCache = KeyValues | QuantizedKeyValues
"""Has one slot for each token: ``arrays()`` have rows on axis 0 and slots on axis 2; ``reach`` names its span."""

BlockCache = SlotCache | State


class Cache:
    """What a model keeps of a batch of sequences between steps.

    Args:
        specs: one for each block, from the plugin's ``make_cache``.
        batch: rows.
        settings: a bound on tokens, and bits; None: neither.
        model: an object that identifies the model; a store of caches compares it.
        rotation_limit: from ``core.nn.rotation_limit``.

    Attributes:
        blocks: one block cache for each spec.
        lengths: tokens that each row holds.
        spans: for each reach, which slots of its blocks hold which positions.

    Raises:
        UsageError: heads that the settings' bits cannot pack.
    """

    def __init__(
        self,
        specs: Sequence[CacheSpec],
        batch: int = 1,
        settings: CacheSettings | None = None,
        model: object | None = None,
        rotation_limit: int | None = None,
    ) -> None:
        self.batch = batch
        self.rotation_limit = rotation_limit
        self._stretched: int | None = None  # the first position whose key was rotated for a sequence beyond the limit
        self.specs = tuple(specs)
        self.settings = CacheSettings() if settings is None else settings
        self.settings.check(self.specs)
        self.model = model
        self.blocks: list[BlockCache] = [self._block(spec) for spec in specs]
        self.lengths = [0] * batch
        self.spans: dict[Reach, Span] = {
            block.reach: Span(block.reach, batch) for block in self.blocks if not isinstance(block, State)
        }
        self._last_counts: list[int] = [0] * batch
        self._broken = False

    def _block(self, spec: CacheSpec) -> BlockCache:
        if spec.kind == "state":
            return State(spec, self.batch)
        reach = self.settings.reach(spec)
        if self.settings.kv_bits is None:
            return KeyValues(spec, reach)
        return QuantizedKeyValues(spec, reach, self.settings)

    @property
    def length(self) -> int:
        """Tokens held, where all rows hold the same number.

        Raises:
            CacheError: the rows differ; ask ``lengths``.
        """
        if len(set(self.lengths)) != 1:
            raise CacheError("the rows of this cache hold different numbers of tokens; read cache.lengths")
        return self.lengths[0]

    @property
    def nbytes(self) -> int:
        """Bytes allocated. Asking changes nothing: the next step writes in place, as it would have."""
        return sum(block.nbytes for block in self.blocks)

    def arrays(self) -> list[mx.array]:
        """Every array held; evaluating them finishes the steps so far."""
        return [array for block in self.blocks for array in block.arrays()]

    @property
    def failed(self) -> bool:
        """Whether a step on this cache failed before its end; then the cache cannot be used any more."""
        return self._broken

    def resize(self, lengths: Sequence[int]) -> None:
        """Sets the tokens of each row, after the arrays and spans have got other rows."""
        self.batch, self.lengths, self._last_counts = len(lengths), list(lengths), [0] * len(lengths)

    def capacity(self, window: Reach) -> int:
        """Slots of the buffers of the blocks with this window, or limit (None: full)."""
        return self.spans[window].capacity

    def positions(self) -> mx.array:
        """int32 ``[batch]``: the position of the next token of each row."""
        return mx.array(self.lengths, dtype=mx.int32)

    def begin(self, batch: int, seq: int, counts: Sequence[int] | None) -> dict[Reach, Write]:
        """Starts a step of ``seq`` tokens a row. Called by the decoder, not by blocks.

        Returns:
            For each reach (a window, a limit, or None: full), how its blocks write.

        Raises:
            CacheError: the batch differs from this cache's, or an earlier step failed before its end.
        """
        if batch != self.batch:
            raise CacheError(
                "tokens and cache disagree on the batch", expected=f"{self.batch} rows", found=f"{batch} rows"
            )
        if self._broken:
            raise CacheError("an earlier step on this cache failed half-way", hint="Make a new cache.")
        self._last_counts = [seq] * batch if counts is None else list(counts)
        self._broken = True
        for block in self.blocks:
            if isinstance(block, State):
                block.begin()
        return {reach: span.extend(self.lengths, self._last_counts, seq) for reach, span in self.spans.items()}

    def commit(self) -> None:
        """Ends the step that ``begin`` started."""
        before = self.lengths
        self.lengths = [length + count for length, count in zip(before, self._last_counts, strict=True)]
        if self.rotation_limit is not None and self._stretched is None and max(self.lengths) > self.rotation_limit:
            self._stretched = min(before)
        self._broken = False

    @property
    def unstretched(self) -> int:
        """Number of tokens at the start whose keys are rotated as in a sequence within ``rotation_limit``."""
        return min(self.lengths) if self._stretched is None else min(self._stretched, *self.lengths)

    def can_rewind(self, tokens: int | Sequence[int]) -> bool:
        """Whether ``rewind`` would succeed."""
        try:
            self._check_rewind(self._lengths_without(tokens))
        except CacheError:
            return False
        return True

    def rewind(self, tokens: int | Sequence[int]) -> None:
        """Removes the last ``tokens`` tokens of each row.

        Raises:
            CacheError: more tokens than a row holds, or than a sliding window or ``max_kv_tokens`` has kept; from
                beyond ``rotation_limit`` to within it, where keys are rotated differently; with recurrent state,
                anything but exactly the last step. The cache is then unchanged.
        """
        lengths = self._lengths_without(tokens)
        self._check_rewind(lengths)
        if lengths != self.lengths:
            for block in self.blocks:
                if isinstance(block, State):
                    block.undo()
                elif isinstance(block, KeyValues):
                    block.disown()
        self.lengths = lengths
        if self._stretched is not None and max(lengths) <= self._stretched:
            self._stretched = None
        self._last_counts = [0] * self.batch

    def trim(self, length: int) -> None:
        """Keeps the first ``length`` tokens of each row that has more; raises as ``rewind``."""
        self.rewind([max(0, held - length) for held in self.lengths])

    def _lengths_without(self, tokens: int | Sequence[int]) -> list[int]:
        counts = [tokens] * self.batch if isinstance(tokens, int) else list(tokens)
        lengths = [length - count for length, count in zip(self.lengths, counts, strict=True)]
        if min(counts) < 0 or min(lengths) < 0:
            raise CacheError(f"cannot rewind by {tokens}", expected=f"0 to {min(self.lengths)}")
        return lengths

    def _check_rewind(self, lengths: list[int]) -> None:
        for span in self.spans.values():
            for row, length in enumerate(lengths):
                span.check_rewind(row, length)
        limit, stretched = self.rotation_limit, self._stretched
        if limit is not None and stretched is not None and any(stretched < length <= limit for length in lengths):
            raise CacheError(
                f"cannot rewind to {min(lengths)} tokens: their keys were rotated as in a sequence beyond {limit}",
                expected=f"at most {stretched} tokens, or more than {limit}",
                hint="Start again with a new cache, or keep a cache.copy() from before.",
            )
        counts = [held - length for held, length in zip(self.lengths, lengths, strict=True)]
        if any(counts) and counts != self._last_counts and any(isinstance(block, State) for block in self.blocks):
            raise CacheError("recurrent state can only undo the last step", expected=f"{self._last_counts} tokens")

    def copy(self) -> Cache:
        """An independent cache with the same content; arrays are shared until one of the two writes."""
        twin = Cache.__new__(Cache)
        twin.batch, twin.lengths, twin._broken = self.batch, list(self.lengths), self._broken
        twin.specs, twin.settings, twin.model = self.specs, self.settings, self.model
        twin._last_counts = list(self._last_counts)
        twin.rotation_limit, twin._stretched = self.rotation_limit, self._stretched
        twin.blocks = [block.copy() for block in self.blocks]
        twin.spans = {reach: span.copy() for reach, span in self.spans.items()}
        return twin
