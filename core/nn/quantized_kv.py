"""``QuantizedKeyValues``: keys and values of one attention block in 4 or 8 bits, and attention to them.

Each token's keys and values are packed separately when they are written. So the stored numbers do not depend on how the
sequence was cut into steps, and a token attends to the packed form of its own key too. Format: ``mx.quantize``, affine.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from core.device import backend
from core.nn.quantized import packed_product
from core.nn.settings import CacheSettings
from core.nn.slots import move_slots, write_slots
from core.nn.span import Move, Reach, Write
from core.nn.spec import CacheSpec
from core.nn.view import View

_FEW = 16
"""Queries of a row up to which packed keys are multiplied directly. On a CPU that takes half the time of making
floats first for one query, and the same time from about 32 on. More queries (a prompt's chunk) attend to floats made
once: on a GPU, a product with packed matrices unpacks them again for each tile of queries, and holds all scores in
memory."""


class QuantizedKeyValues:
    """Packed keys and values; three arrays for each, ``[batch, heads, slots, features]``: words, scales, biases.

    Args:
        spec: what the block asks for; its dtype is not used.
        reach: which tokens are kept; all blocks with the same one share a ``Span``.
        settings: ``kv_bits`` and ``kv_group_size``.
    """

    def __init__(self, spec: CacheSpec, reach: Reach, settings: CacheSettings) -> None:
        assert settings.kv_bits is not None
        self.spec = spec
        self.reach = reach
        self._settings = settings
        self._bits, self._group_size = settings.kv_bits, settings.kv_group_size
        self._arrays: list[mx.array] = []

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, write: Write, view: View, scale: float
    ) -> mx.array:
        """Caches the step's keys and values, and attends to what ``view`` shows; shapes as in ``Step.attend``."""
        buffers = self._write(keys, values, write)
        if queries.shape[2] <= _FEW:
            # Whole buffers: CUDA's product accepts no slices of them, and the CPU's copies slices.
            mask = view.over(buffers[0].shape[2])
            return self._attend_packed(queries, buffers[:3], buffers[3:], mask, scale)
        keys, values = (
            self._floats(packed, queries.dtype)[:, :, view.first : view.last] for packed in (buffers[:3], buffers[3:])
        )
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=view.mask)

    def _attend_packed(
        self,
        queries: mx.array,
        keys: Sequence[mx.array],
        values: Sequence[mx.array],
        mask: mx.array,
        scale: float,
    ) -> mx.array:
        batch, heads, seq, _ = queries.shape
        groups = keys[0].shape[1]
        # Query heads that share keys become further queries, so one product reads the keys once and repeats nothing.
        x = (queries.astype(keys[1].dtype) * scale).reshape(batch, groups, heads // groups * seq, -1)
        scores = mx.unflatten(self._product(x, keys, transpose=True), 2, (heads // groups, seq))
        scores = mx.where(mask[:, :, None], scores, mx.array(-mx.inf, dtype=scores.dtype))
        weights = mx.softmax(scores, axis=-1, precise=True).flatten(2, 3)
        y = self._product(weights, values, transpose=False)
        return y.reshape(batch, heads, seq, -1).astype(queries.dtype)

    def _product(self, x: mx.array, packed: Sequence[mx.array], *, transpose: bool) -> mx.array:
        words, scales, biases = packed
        return packed_product(x, words, scales, biases, self._group_size, self._bits, transpose=transpose)

    def _write(self, keys: mx.array, values: mx.array, write: Write) -> list[mx.array]:
        new = [array for floats in (keys, values) for array in self._pack(floats)]
        held: Sequence[mx.array | None] = self._arrays or [None] * len(new)
        buffers = [write_slots(buffer, array, write) for buffer, array in zip(held, new, strict=True)]
        after = write.after
        self._arrays = buffers if after is None else [move_slots(buffer, after) for buffer in buffers]
        return buffers

    def _pack(self, floats: mx.array) -> Sequence[mx.array]:
        # MLX's CPU products are several times slower in half precision; scales in float32 make them use float32.
        wide = floats.astype(mx.float32) if backend() == "cpu" else floats
        return mx.quantize(wide, group_size=self._group_size, bits=self._bits)

    def _floats(self, packed: Sequence[mx.array], dtype: mx.Dtype) -> mx.array:
        words, scales, biases = packed
        return mx.dequantize(words, scales, biases, self._group_size, self._bits).astype(dtype)

    def move(self, move: Move, after: mx.array) -> None:
        """Moves the kept slots to new buffers, once ``after`` has been computed."""
        self._arrays = [move_slots(array, move) for array in mx.depends(self._arrays, [after])]

    @property
    def nbytes(self) -> int:
        """Bytes allocated. Asking changes nothing."""
        return sum(array.nbytes for array in self._arrays)

    def arrays(self) -> list[mx.array]:
        """The arrays held, rows on axis 0 and slots on axis 2; none before the first write."""
        return list(self._arrays)

    def layout(self, slots: int) -> list[tuple[str, tuple[int, ...]]]:
        """Kind (``words`` or ``float``) and shape of ``arrays()`` for one row with so many slots."""
        features = [
            (kind, count)
            for dim in (self.spec.head_dim, self.spec.value_head_dim)
            for kind, count in (("words", dim * self._bits // 32), *[("float", dim // self._group_size)] * 2)
        ]
        return [(kind, (1, self.spec.heads, slots, count)) for kind, count in features]

    def replace(self, arrays: Sequence[mx.array]) -> None:
        """Replaces the arrays, in the order of ``arrays()``. The caller updates the span."""
        self._arrays = list(arrays)

    def copy(self) -> QuantizedKeyValues:
        """An independent cache with the same content; arrays are shared until one of the two writes."""
        twin = QuantizedKeyValues(self.spec, self.reach, self._settings)
        twin.replace([array[:] for array in self._arrays])
        return twin
