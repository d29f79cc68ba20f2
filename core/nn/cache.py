"""Key/value caches: the arrays that blocks keep between steps, for a batch of sequences at their own positions.

One ``Cache`` serves a whole model: it holds one block cache for each block, in the kinds that the blocks' specs ask
for, and how many tokens each row has. Knows arrays and positions; knows no tokens, no text and no architecture.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from core.errors import CacheError
from core.nn.span import Move, Span, Write
from core.nn.spec import CacheSpec


class KeyValues:
    """Keys and values of one attention block, ``[batch, heads, slots, head_dim]``; allocated by the first write."""

    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def write(self, keys: mx.array, values: mx.array, write: Write) -> tuple[mx.array, mx.array]:
        """Adds ``[batch, heads, seq, head_dim]`` keys and values, and returns the buffers to attend to."""
        if self.spec.dtype is not None:
            keys, values = keys.astype(self.spec.dtype), values.astype(self.spec.dtype)
        self.keys = _write(self.keys, keys, write)
        self.values = _write(self.values, values, write)
        buffers = self.keys, self.values
        if write.after is not None:
            self.keys, self.values = _move(self.keys, write.after), _move(self.values, write.after)
        return buffers

    def move(self, move: Move, after: mx.array) -> None:
        """Moves the kept slots to new buffers, once ``after`` has been computed."""
        keys, values = mx.depends(self.arrays(), [after])
        self.keys, self.values = _move(keys, move), _move(values, move)

    def arrays(self) -> list[mx.array]:
        """The arrays held, for evaluation and accounting."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    def copy(self) -> KeyValues:
        """An independent cache with the same content; arrays are shared until one of the two writes."""
        twin = KeyValues(self.spec)
        if self.keys is not None and self.values is not None:
            twin.keys, twin.values = self.keys[:], self.values[:]  # an assignment to a slice changes a Python object
        return twin


class State:
    """Named arrays of one recurrent block; each step replaces them. Reads and writes like a dictionary."""

    def __init__(self, spec: CacheSpec, batch: int) -> None:
        self.spec = spec
        dtype = spec.dtype or mx.float32
        self._now = {name: mx.zeros((batch, *shape), dtype=dtype) for name, shape in spec.shapes.items()}
        self._before = dict(self._now)

    def __getitem__(self, name: str) -> mx.array:
        return self._now[name]

    def __setitem__(self, name: str, value: mx.array) -> None:
        if name not in self._now:
            raise CacheError(
                f"this block's CacheSpec has no state {name!r}", expected=", ".join(self._now) or "no state"
            )
        self._now[name] = value

    def begin(self) -> None:
        """Remembers the state, so that the step that starts now can be taken back."""
        self._before = dict(self._now)

    def undo(self) -> None:
        """Takes the last step back."""
        self._now = dict(self._before)

    def arrays(self) -> list[mx.array]:
        """The arrays held, for evaluation and accounting."""
        return list(self._now.values())

    def copy(self) -> State:
        """An independent cache with the same content."""
        twin = State.__new__(State)
        twin.spec, twin._now, twin._before = self.spec, dict(self._now), dict(self._before)
        return twin


BlockCache = KeyValues | State


class Cache:
    """What a model keeps of a batch of sequences, between steps.

    Args:
        specs: one for each block, from the plugin's ``make_cache``.
        batch: rows.

    Attributes:
        blocks: one block cache for each spec.
        lengths: tokens that each row holds.
    """

    def __init__(self, specs: Sequence[CacheSpec], batch: int = 1) -> None:
        self.batch = batch
        self.blocks: list[BlockCache] = [State(s, batch) if s.kind == "state" else KeyValues(s) for s in specs]
        self.lengths = [0] * batch
        windows = {spec.window for spec in specs if spec.kind != "state"}
        self._spans = {window: Span(window, batch) for window in windows}
        self._last_counts: list[int] = [0] * batch
        self._broken = False

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
        """Bytes allocated."""
        return sum(array.nbytes for array in self.arrays())

    def arrays(self) -> list[mx.array]:
        """Every array held; evaluating them finishes the steps so far."""
        return [array for block in self.blocks for array in block.arrays()]

    def capacity(self, window: int | None) -> int:
        """Slots of the buffers of the blocks with this window (None: full)."""
        return self._spans[window].capacity

    def positions(self) -> mx.array:
        """int32 ``[batch]``: the position of the next token of each row."""
        return mx.array(self.lengths, dtype=mx.int32)

    def begin(self, batch: int, seq: int, counts: Sequence[int] | None) -> dict[int | None, Write]:
        """Starts a step of ``seq`` tokens a row; the decoder calls it, blocks do not.

        Returns:
            For each window (None: full), how its blocks write.

        Raises:
            CacheError: the batch is another than this cache's, or an earlier step failed half-way.
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
        return {window: span.extend(self.lengths, self._last_counts, seq) for window, span in self._spans.items()}

    def commit(self) -> None:
        """Ends the step that ``begin`` started."""
        self.lengths = [length + count for length, count in zip(self.lengths, self._last_counts, strict=True)]
        self._broken = False

    def rewind(self, tokens: int | Sequence[int]) -> None:
        """Forgets the last ``tokens`` tokens of each row.

        Raises:
            CacheError: more than a row holds, more than a sliding window still has, or, with recurrent state, anything
                else than exactly the last step. The cache is then unchanged.
        """
        counts = [tokens] * self.batch if isinstance(tokens, int) else list(tokens)
        lengths = [length - count for length, count in zip(self.lengths, counts, strict=True)]
        if min(counts) < 0 or min(lengths) < 0:
            raise CacheError(f"cannot rewind by {tokens}", expected=f"0 to {min(self.lengths)}")
        for span in self._spans.values():
            for row, length in enumerate(lengths):
                span.check_rewind(row, length)
        states = [block for block in self.blocks if isinstance(block, State)]
        if states and any(counts):
            if counts != self._last_counts:
                raise CacheError(
                    "recurrent state can only take the last step back", expected=f"{self._last_counts} tokens"
                )
            for block in states:
                block.undo()
        self.lengths = lengths
        self._last_counts = [0] * self.batch

    def copy(self) -> Cache:
        """An independent cache with the same content; arrays are shared until one of the two writes."""
        twin = Cache.__new__(Cache)
        twin.batch, twin.lengths, twin._broken = self.batch, list(self.lengths), self._broken
        twin._last_counts = list(self._last_counts)
        twin.blocks = [block.copy() for block in self.blocks]
        twin._spans = {window: span.copy() for window, span in self._spans.items()}
        return twin


def _write(buffer: mx.array | None, new: mx.array, write: Write) -> mx.array:
    if write.before is not None:
        buffer = _move(buffer, write.before, new)
    assert buffer is not None
    if write.slots is not None:
        return mx.put_along_axis(buffer, mx.broadcast_to(write.slots, new.shape), new, axis=2)
    # Known bounds cost one node, in place where nobody else holds the buffer; bounds in an array cost several on CUDA.
    buffer[:, :, write.first : write.last] = new
    return buffer


def _move(buffer: mx.array | None, move: Move, like: mx.array | None = None) -> mx.array:
    """A new buffer of ``move.size`` slots that starts with the kept ones; zeros where there is no buffer yet."""
    if buffer is None:
        assert like is not None
        batch, heads, _, features = like.shape
        return mx.zeros((batch, heads, move.size, features), dtype=like.dtype)
    if move.index is None:
        kept = buffer[:, :, move.start : move.stop]
    else:
        batch, heads, _, features = buffer.shape
        kept = mx.take_along_axis(buffer, mx.broadcast_to(move.index, (batch, heads, move.stop, features)), axis=2)
    batch, heads, slots, features = kept.shape
    return mx.concatenate([kept, mx.zeros((batch, heads, move.size - slots, features), dtype=kept.dtype)], axis=2)
