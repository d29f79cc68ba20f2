"""Attention of several new tokens of each row to that row's part of a cache, rows at their own positions.

A block takes a tile of queries of one row that share a key/value head, and only the slots that they see
(FlashAttention-2; Dao, 2023). What is seen comes in an array, so that nothing is compiled or planned for a length:
MLX's own attention plans each pair of lengths anew, for 30 ms and more, and is ten times slower with a mask
(benchmarks/LOG.md, 9). Where the queries are too few to fill the device, several blocks share their slots, and a second
kernel merges the parts.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import mlx.core as mx

from core.kernels import prefill_attention_reference as reference
from core.kernels.compare import Tolerance
from core.kernels.device import current_device, multiprocessors
from core.kernels.fused import Launch
from core.kernels.kernel import Kernel
from core.kernels.merge_parts import merge_parts
from core.kernels.policy import MULTIPROCESSORS, PREFILL_MOST_PARTS, PREFILL_UNIT
from core.kernels.prefill_attention_layout import LAYOUTS, Layout, layout_for, runs


@dataclass(frozen=True)
class PrefillAttention:
    """What ``prefill_attention_kernel`` gives."""

    kernel: Kernel

    def launched(self, *inputs: mx.array) -> mx.array | None:
        """The attended values, ``[rows, heads, seq, head_dim]``; None where the kernel does not run here.

        A row's tokens lie one after the other in memory, heads within, as a projection takes them.
        """
        found = self.kernel.launched(*inputs)
        if found is None:
            return None
        return (merge_parts(found) if found.ndim == 5 else found).swapaxes(1, 2)


@functools.lru_cache(256)
def _parts(blocks: int, slots: int, places: int) -> int:
    """How many blocks share the slots of each of so many, on a device with so many places for blocks.

    As many as finish first: in waves, of which each takes its tiles, and some time to begin; merging takes more.
    """
    units = -(-slots // PREFILL_UNIT)

    def cost(parts: int) -> int:
        return -(-blocks * parts // places) * (-(-units // parts) + (1 if parts == 1 else 2))

    return min(range(1, min(PREFILL_MOST_PARTS, units) + 1), key=cost)


def _blocks(layout: Layout, queries: mx.array, cache_k: mx.array) -> int:
    """Blocks that it takes to have one for each tile of queries."""
    rows, heads, seq, _ = queries.shape
    kv_heads = cache_k.shape[1]
    return rows * kv_heads * -(-seq * (heads // kv_heads) // layout.rows)


def _parts_for(layout: Layout, queries: mx.array, cache_k: mx.array) -> int:
    places = (multiprocessors() or MULTIPROCESSORS) * layout.blocks
    return _parts(_blocks(layout, queries, cache_k), cache_k.shape[2], places)


def _kernel(layout: Layout, in_parts: bool) -> Kernel:
    head_dim = layout.head_dim
    name = f"prefill_attention_{layout.name}_{head_dim}" + ("_parts" if in_parts else "")
    header, body = layout.source(name, parts=in_parts)

    def parts(queries: mx.array, cache_k: mx.array, cache_v: mx.array, bounds: mx.array) -> mx.array:
        count = _parts_for(layout, queries, cache_k)
        return reference.in_parts(queries, cache_k, cache_v, bounds, block=layout.rows, keys=layout.keys, parts=count)

    def launch(queries: mx.array, cache_k: mx.array, *_: mx.array) -> Launch:
        rows, heads, seq, _features = queries.shape
        threads, blocks = layout.threads, _blocks(layout, queries, cache_k)
        if not in_parts:
            shape = (rows, seq, heads, head_dim)
            return Launch((blocks * threads, 1, 1), (threads, 1, 1), shape, queries.dtype)
        count = _parts_for(layout, queries, cache_k)
        shape_of_parts = (rows, seq, heads, count, head_dim + 2)
        return Launch((blocks * threads, count, 1), (threads, 1, 1), shape_of_parts, mx.float32)

    def supports(queries: mx.array, cache_k: mx.array, cache_v: mx.array, bounds: mx.array) -> bool:
        device = current_device()
        rows, kv_heads, _, features = cache_k.shape
        return (
            device is not None
            and runs(layout, device.capability)
            and all(array.dtype == mx.bfloat16 for array in (queries, cache_k, cache_v))
            and (queries.shape[0], queries.shape[3]) == (rows, features) == (rows, head_dim)
            and queries.shape[1] % kv_heads == 0
            and cache_k.shape == cache_v.shape
            and bounds.shape == (rows, 3)
            and bounds.dtype == mx.int32
        )

    return Kernel(
        name,
        parts if in_parts else reference.whole,
        launch=launch,
        sample_inputs=reference.samples(head_dim),
        cuda=body,
        header=header,
        shared_memory=layout.shared_memory,
        in_place=True,
        # Probabilities are rounded to bfloat16, as FlashAttention's are.
        tolerance={dtype: Tolerance(2e-2, 2e-2) for dtype in (mx.bfloat16, mx.float16, mx.float32)},
        supports=supports,
    )


_KERNELS = {(layout, in_parts): _kernel(layout, in_parts) for layout in LAYOUTS for in_parts in (False, True)}


def prefill_attention_kernel(queries: mx.array, keys: mx.array, scale: float) -> PrefillAttention | None:
    """The kernel for these shapes; None where there is none, or no fused source on this device.

    It takes ``(queries [rows, heads, seq, head_dim], keys, values [rows, kv_heads, slots, head_dim], bounds)``, where
    ``bounds`` is int32 ``[rows, 3]``, kept, window and start: query *i* of a row stands at slot *start + i*, which the
    row has, and sees the slots *s* up to it with ``s < kept`` or ``s > start + i - window``. Queries lie anywhere;
    keys and values lie as in a cache: features one after the other, and slots at multiples of 16 bytes.
    """
    device = current_device()
    if device is None or device.language != "cuda":
        return None
    layout = layout_for(device.capability, queries.shape[3])
    if layout is None or not math.isclose(scale, layout.head_dim**-0.5, rel_tol=1e-6):
        return None
    return PrefillAttention(_KERNELS[layout, _parts_for(layout, queries, keys) > 1])
