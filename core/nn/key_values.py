"""Keys and values of one attention block, as floats.

Knows arrays and how a step writes them; knows no other block.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from core.kernels.decode_attention import decode_attention_kernel
from core.nn.slots import move_slots, write_slots
from core.nn.span import Move, Reach, Write
from core.nn.spec import CacheSpec
from core.nn.view import View


class KeyValues:
    """Keys and values of one attention block, ``[batch, heads, slots, head_dim]``; allocated by the first write.

    Args:
        spec: what the block asks for.
        reach: which tokens are kept; all blocks with the same one share a ``Span``.
    """

    def __init__(self, spec: CacheSpec, reach: Reach) -> None:
        self.spec = spec
        self.reach = reach
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, write: Write, view: View, scale: float
    ) -> mx.array:
        """Caches the step's keys and values, and attends to what ``view`` shows; shapes as in ``Step.attend``."""
        keys, values = self._write(keys, values, write)
        if view.decodes and (kernel := decode_attention_kernel(queries, keys, scale)) is not None:
            if kernel.takes(queries, keys, values, view.bounds):
                return kernel(queries, keys, values, view.bounds)
        keys, values = keys[:, :, view.first : view.last], values[:, :, view.first : view.last]
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=view.mask)

    def _write(self, keys: mx.array, values: mx.array, write: Write) -> tuple[mx.array, mx.array]:
        """Adds ``[batch, heads, seq, head_dim]`` keys and values, and returns the buffers to attend to."""
        if self.spec.dtype is not None:
            keys, values = keys.astype(self.spec.dtype), values.astype(self.spec.dtype)
        self.keys = write_slots(self.keys, keys, write)
        self.values = write_slots(self.values, values, write)
        buffers = self.keys, self.values
        if write.after is not None:
            self.keys, self.values = move_slots(self.keys, write.after), move_slots(self.values, write.after)
        return buffers

    def move(self, move: Move, after: mx.array) -> None:
        """Moves the kept slots to new buffers, once ``after`` has been computed."""
        keys, values = mx.depends(self.arrays(), [after])
        self.keys, self.values = move_slots(keys, move), move_slots(values, move)

    def arrays(self) -> list[mx.array]:
        """The arrays held, rows on axis 0 and slots on axis 2; none before the first write."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    def layout(self, slots: int) -> list[tuple[str, tuple[int, ...]]]:
        """Kind (``float``) and shape of ``arrays()`` for one row with so many slots."""
        return [("float", (1, self.spec.heads, slots, dim)) for dim in (self.spec.head_dim, self.spec.value_head_dim)]

    def replace(self, arrays: Sequence[mx.array]) -> None:
        """Holds these arrays instead, in the order of ``arrays()``; the span must know of what has changed."""
        self.keys, self.values = arrays or (None, None)

    def copy(self) -> KeyValues:
        """An independent cache with the same content; arrays are shared until one of the two writes."""
        twin = KeyValues(self.spec, self.reach)
        twin.replace([array[:] for array in self.arrays()])  # an assignment to a slice changes a Python object
        return twin
