"""``KeyValues``: keys and values of one attention block, as floats.

Where a kernel is available, a step of one token a row writes them in place, without MLX's knowledge. This is safe
because nothing else refers to the buffers: an ordinary step wrote them, which copies whatever is shared. If a caller
asks for the arrays or for a copy, these depend on the last kernel, and the next step is an ordinary one again. Each
step depends on the one before through its input token.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from core.kernels.decode_attention import decode_attention_kernel
from core.kernels.device import in_inference
from core.kernels.prefill_attention import prefill_attention_kernel
from core.nn.slots import move_slots, write_slots
from core.nn.span import Move, Reach, Write
from core.nn.spec import CacheSpec
from core.nn.view import View

_MANY = 1024
"""Queries of a row from which MLX's own attention is used, if its mask needs no array. CUDA's is faster by a tenth
to a quarter then. Prompts are cut into chunks of few lengths, so it seldom has to be planned."""


class KeyValues:
    """Keys and values of one attention block, ``[batch, heads, slots, head_dim]``; allocated by the first write.

    Args:
        spec: what the block asks for.
        reach: which tokens are kept; all blocks with the same one share a ``Span``.
    """

    def __init__(self, spec: CacheSpec, reach: Reach) -> None:
        self.spec = spec
        self.reach = reach
        self._keys: mx.array | None = None
        self._values: mx.array | None = None
        self._owned = False  # nothing else refers to the buffers
        self._last: mx.array | None = None  # output of the last step that wrote in place

    @property
    def keys(self) -> mx.array | None:
        """``[batch, heads, slots, head_dim]``; None before the first write."""
        return self.arrays()[0] if self._keys is not None else None

    @property
    def values(self) -> mx.array | None:
        """``[batch, heads, slots, value_head_dim]``; None before the first write."""
        return self.arrays()[1] if self._values is not None else None

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, write: Write, view: View, scale: float
    ) -> mx.array:
        """Stores the step's keys and values, and attends to what ``view`` shows; shapes as in ``Step.attend``."""
        if view.decodes and write.before is None and write.after is None:
            attended = self._decode(queries, keys, values, view, scale)
            if attended is not None:
                return attended
        keys, values = self._write(keys, values, write)
        keys, values = keys[:, :, view.first : view.last], values[:, :, view.first : view.last]
        attended = self._prefill(queries, keys, values, view, scale)
        if attended is not None:
            return attended
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=view.mask)

    def _decode(self, queries: mx.array, keys: mx.array, values: mx.array, view: View, scale: float) -> mx.array | None:
        """Writes and attends in one kernel; None where that is impossible."""
        if not self._owned or self._keys is None or self._values is None or not in_inference():
            return None
        kernel = decode_attention_kernel(queries, self._keys, scale)
        if kernel is None:
            return None
        attended = kernel.launched(queries, keys, values, self._keys, self._values, view.bounds)
        self._last = self._last if attended is None else attended
        return attended

    def _prefill(
        self, queries: mx.array, keys: mx.array, values: mx.array, view: View, scale: float
    ) -> mx.array | None:
        """Attends to the written keys with a kernel; None where MLX's attention is to be used."""
        seq = queries.shape[2]
        if seq == 1 or not (view.masked or seq < _MANY) or not in_inference():
            return None
        kernel = prefill_attention_kernel(queries, keys, scale)
        return None if kernel is None else kernel.launched(queries, keys, values, view.windows)

    def _write(self, keys: mx.array, values: mx.array, write: Write) -> tuple[mx.array, mx.array]:
        """Adds ``[batch, heads, seq, head_dim]`` keys and values, and returns the buffers to attend to."""
        if self.spec.dtype is not None:
            keys, values = keys.astype(self.spec.dtype), values.astype(self.spec.dtype)
        self._settle()
        buffers = write_slots(self._keys, keys, write), write_slots(self._values, values, write)
        self._keys, self._values = buffers
        if write.after is not None:
            self._keys, self._values = move_slots(self._keys, write.after), move_slots(self._values, write.after)
        self._owned = True
        return buffers

    @property
    def dtype(self) -> mx.Dtype | None:
        """Of the keys and values held; None before the first write."""
        return None if self._keys is None else self._keys.dtype

    def open_in_place(self, batch: int, write: Write) -> tuple[mx.array, mx.array]:
        """Keys and values with room for a step, for code that writes them in memory. Call ``close_in_place`` after it.

        Evaluate them first. Nothing else refers to them: shared buffers are copied here.
        """
        self._settle()
        if write.before is not None:
            dtype = self.spec.dtype or mx.float32
            rows = [mx.zeros((batch, self.spec.heads, 0, dim), dtype) for dim in self.dims]
            self._keys = move_slots(self._keys, write.before, rows[0])
            self._values = move_slots(self._values, write.before, rows[1])
        assert self._keys is not None
        assert self._values is not None
        if write.before is None and not self._owned:
            self._keys, self._values = _copied(self._keys), _copied(self._values)
        self._owned = True
        return self._keys, self._values

    def close_in_place(self, write: Write) -> None:
        """Drops the tokens that the step's window no longer shows."""
        if write.after is not None and self._keys is not None and self._values is not None:
            self._keys, self._values = move_slots(self._keys, write.after), move_slots(self._values, write.after)

    def disown(self) -> None:
        """Makes the next step an ordinary one: a step that was undone may still be computed, and must not be
        overwritten."""
        self._owned = False

    def _settle(self) -> None:
        """Makes all later uses of the buffers depend on the last step that wrote in place."""
        if self._last is not None and self._keys is not None and self._values is not None:
            self._keys, self._values = mx.depends([self._keys, self._values], [self._last])
        self._last = None

    def move(self, move: Move, after: mx.array) -> None:
        """Moves the kept slots to new buffers, once ``after`` has been computed."""
        keys, values = mx.depends(self.arrays(), [after])
        self._keys, self._values = move_slots(keys, move), move_slots(values, move)

    @property
    def nbytes(self) -> int:
        """Bytes allocated. Asking changes nothing."""
        return sum(array.nbytes for array in (self._keys, self._values) if array is not None)

    def arrays(self) -> list[mx.array]:
        """The arrays held, rows on axis 0 and slots on axis 2; none before the first write."""
        if self._keys is None or self._values is None:
            return []
        self._settle()
        self._owned = False
        return [self._keys, self._values]

    @property
    def dims(self) -> tuple[int, int]:
        """Features of a key and of a value."""
        return self.spec.head_dim, self.spec.value_head_dim

    def layout(self, slots: int) -> list[tuple[str, tuple[int, ...]]]:
        """Kind (``float``) and shape of ``arrays()`` for one row with so many slots."""
        return [("float", (1, self.spec.heads, slots, dim)) for dim in self.dims]

    def replace(self, arrays: Sequence[mx.array]) -> None:
        """Replaces the arrays, in the order of ``arrays()``. The caller updates the span."""
        self._keys, self._values = arrays or (None, None)
        self._owned, self._last = False, None

    def copy(self) -> KeyValues:
        """An independent cache with the same content; arrays are shared until one of the two writes."""
        twin = KeyValues(self.spec, self.reach)
        twin.replace([array[:] for array in self.arrays()])  # an assignment to a slice changes a Python object
        return twin


def _copied(array: mx.array) -> mx.array:
    return mx.concatenate([array[:, :, :1], array[:, :, 1:]], axis=2)
