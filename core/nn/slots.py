"""Writes a step's tokens into buffers of slots, ``[batch, heads, slots, features]``, and moves the tokens that stay."""

from __future__ import annotations

import mlx.core as mx

from core.nn.span import Move, Write


def write_slots(buffer: mx.array | None, new: mx.array, write: Write) -> mx.array:
    """The buffer with ``[batch, heads, seq, features]`` written. The caller makes any move after it.

    Args:
        buffer: None if nothing has been written yet.
        new: the tokens to write.
        write: where to write them.
    """
    if write.before is not None:
        buffer = move_slots(buffer, write.before, new)
    assert buffer is not None
    if write.slots is not None:
        return mx.put_along_axis(buffer, mx.broadcast_to(write.slots, new.shape), new, axis=2)
    # Known bounds cost one node, in place if nothing else refers to the buffer; bounds in an array cost several on
    # CUDA.
    buffer[:, :, write.first : write.last] = new
    return buffer


def move_slots(buffer: mx.array | None, move: Move, like: mx.array | None = None) -> mx.array:
    """A new buffer of ``move.size`` slots that starts with the kept ones; zeros where there is no buffer yet."""
    if buffer is None:
        assert like is not None
        batch, heads, _, features = like.shape
        return mx.zeros((batch, heads, move.size, features), dtype=like.dtype)
    batch, heads, _, features = buffer.shape
    if move.index is None:
        kept = [buffer[:, :, : move.front]] if move.front else []
        kept.append(buffer[:, :, move.start : move.stop])
    else:
        shape = (batch, heads, move.index.shape[2], features)
        kept = [mx.take_along_axis(buffer, mx.broadcast_to(move.index, shape), axis=2)]
    free = move.size - sum(part.shape[2] for part in kept)
    return mx.concatenate([*kept, mx.zeros((batch, heads, free, features), dtype=buffer.dtype)], axis=2)
