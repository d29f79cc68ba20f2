"""Attention of one new token of each row to that row's part of the cache, which it joins, rows at their own positions.

A block takes one key/value head of one row, or a part of its keys where there are too few heads to fill a device (Dao
et al., 2023, Flash-Decoding); query heads that share it are rows of a tensor-core product (FlashAttention-2's
arrangement; Dao, 2023). It reads whole buffers, and bounds in an array, so that nothing of a step depends on how long
the sequences are, and writes the new key and value in place: MLX would copy the buffers, because the step before still
reads them when the host builds the next.

No clusters of blocks: MLX 0.32 updates its CUDA graphs from one step to the next, and kernels that come after one with
clusters of its own computed nonsense (benchmarks/LOG.md, 9).
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Protocol

import mlx.core as mx

from core.kernels.compare import Tolerance
from core.kernels.cuda_text import constants, declaration, strided
from core.kernels.device import current_device
from core.kernels.fused import Launch
from core.kernels.kernel import Kernel
from core.kernels.merge_parts import NOTHING, merge_parts
from core.kernels.source_files import CUDA, source_text

_WARPS = 8
_BLOCKS = 264  # two for each multiprocessor of the largest devices
_SMALLEST_PART = 256  # keys: a tile for each warp, twice
_HEAD_DIMS = (64, 128)
_lock = threading.Lock()  # two threads that need a new kernel must not both make it


class DecodeAttention(Protocol):
    """What ``decode_attention_kernel`` gives."""

    def launched(self, *inputs: mx.array) -> mx.array | None:
        """The attended values, ``[rows, heads, 1, head_dim]``; None where the kernel does not run here."""
        ...


class _InParts:
    """The kernel that leaves a result for each part of the keys, and the one that merges them."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def launched(self, *inputs: mx.array) -> mx.array | None:
        found = self._kernel.launched(*inputs)
        return None if found is None else merge_parts(found)


def _parts(heads: int, slots: int) -> int:
    """Into how many parts the keys of each of so many key/value heads, of all rows, are cut."""
    return max(1, min(_BLOCKS // heads, slots // _SMALLEST_PART))


def _reference(
    queries: mx.array, new_key: mx.array, new_value: mx.array, cache_k: mx.array, cache_v: mx.array, bounds: mx.array
) -> mx.array:
    keys, values, mask = _seen(new_key, new_value, cache_k, cache_v, bounds)
    scale = queries.shape[-1] ** -0.5
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask[:, None, None])


def _reference_in_parts(
    queries: mx.array, new_key: mx.array, new_value: mx.array, cache_k: mx.array, cache_v: mx.array, bounds: mx.array
) -> mx.array:
    keys, values, mask = _seen(new_key, new_value, cache_k, cache_v, bounds)
    rows, kv_heads, slots, dim = keys.shape
    parts = _parts(rows * kv_heads, slots)
    kept, first, last = (bounds[:, i, None] for i in range(3))
    place = mx.arange(slots, dtype=mx.int32)
    order = mx.where(place < kept, place, place - first + kept)  # among those that are seen
    each = ((kept + last - first + 15) // 16 + parts - 1) // parts * 16
    mine = mask[:, None] & (order[:, None] // each[:, None] == mx.arange(parts)[:, None])  # [rows, parts, slots]
    grouped = queries.astype(mx.float32).reshape(rows, kv_heads, -1, dim)
    scores = (grouped @ keys.astype(mx.float32).swapaxes(-1, -2)) * (dim**-0.5 * math.log2(math.e))
    scores = mx.where(mine[:, None, None], scores[:, :, :, None], NOTHING)  # [rows, kv_heads, group, parts, slots]
    best = mx.max(scores, axis=-1, keepdims=True)
    weights = mx.where(mine[:, None, None], mx.power(2.0, scores - best), 0.0)
    sums = mx.sum(weights, axis=-1, keepdims=True)
    outputs = weights @ values.astype(mx.float32)[:, :, None]
    return mx.concatenate([outputs, best, sums], axis=-1).reshape(rows, -1, 1, parts, dim + 2)


def _seen(
    new_key: mx.array, new_value: mx.array, cache_k: mx.array, cache_v: mx.array, bounds: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Keys and values with the new ones, and which of the slots each row sees, ``[rows, slots]``."""
    kept, first, last = (bounds[:, i, None] for i in range(3))
    slots = mx.arange(cache_k.shape[2], dtype=mx.int32)
    written = (slots == last - 1)[:, None, :, None]
    mask = (slots < kept) | ((slots >= first) & (slots < last))
    return mx.where(written, new_key, cache_k), mx.where(written, new_value, cache_v), mask


def _kernel(head_dim: int, group: int, in_parts: bool) -> Kernel:
    with _lock:
        return _made(head_dim, group, in_parts)


@functools.cache
def _made(head_dim: int, group: int, in_parts: bool) -> Kernel:
    name = f"decode_attention_{head_dim}_{group}" + ("_parts" if in_parts else "")
    values = {
        "HEAD_DIM": head_dim,
        "GROUP": group,
        "WARPS": _WARPS,
        "SCORE_SCALE": head_dim**-0.5 * math.log2(math.e),
        "NOTHING": NOTHING,
        "PARTS": in_parts,
    }
    arrays = [strided(one, shape=one == "cache_k") for one in ("queries", "new_key", "new_value", "cache_k", "cache_v")]
    out = "float" if in_parts else "__nv_bfloat16"
    declared = declaration(name, _WARPS * 32, 2, [*arrays, "const int32_t* bounds", f"{out}* out"])

    def launch(queries: mx.array, *others: mx.array) -> Launch:
        rows, kv_heads, slots, _ = others[2].shape
        threads = _WARPS * 32
        if not in_parts:
            return Launch((rows * kv_heads * threads, 1, 1), (threads, 1, 1), queries.shape, queries.dtype)
        parts = _parts(rows * kv_heads, slots)
        shape = (rows, kv_heads * group, 1, parts, head_dim + 2)
        return Launch((rows * kv_heads * threads, parts, 1), (threads, 1, 1), shape, mx.float32)

    def supports(
        queries: mx.array,
        new_key: mx.array,
        new_value: mx.array,
        cache_k: mx.array,
        cache_v: mx.array,
        bounds: mx.array,
    ) -> bool:
        rows, kv_heads, _, features = cache_k.shape
        return (
            all(array.dtype == mx.bfloat16 for array in (queries, new_key, new_value, cache_k, cache_v))
            and features == head_dim
            and queries.shape == (rows, kv_heads * group, 1, head_dim)
            and new_key.shape == new_value.shape == (rows, kv_heads, 1, head_dim)
            and cache_k.shape == cache_v.shape
            and bounds.shape == (rows, 3)
            and bounds.dtype == mx.int32
        )

    def samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        found = []
        for (rows, capacity), part in zip(((3, 700), (1, 33), (1, 1500)), mx.random.split(key, 3), strict=True):
            keys = mx.random.split(part, 5)
            new = [mx.random.normal((rows, 2, 1, head_dim), key=one).astype(dtype) for one in keys[:2]]
            held = [mx.random.normal((rows, 2, capacity, head_dim), key=one).astype(dtype) for one in keys[2:4]]
            queries = mx.random.normal((rows, 2 * group, 1, head_dim), key=keys[4]).astype(dtype)
            some = [[0, 0, 1 + capacity // 3], [4, 9, capacity], [0, capacity - 1, capacity]]
            found.append((queries, *new, *held, mx.array(some[:rows], dtype=mx.int32)))
        return found

    return Kernel(
        name,
        _reference_in_parts if in_parts else _reference,
        launch=launch,
        sample_inputs=samples,
        cuda=source_text(CUDA / "decode_attention.cu"),
        header=constants("corelm_decode", values) + source_text(CUDA / "decode_attention.cuh") + declared,
        in_place=True,
        # Probabilities are rounded to bfloat16, as FlashAttention's are; those of a part are not yet divided by their
        # sum, which is of the order of 100 in the samples.
        tolerance={mx.float16: Tolerance(5e-3, 5e-3), mx.bfloat16: Tolerance(2e-2, 2e-2)}
        | ({mx.float32: Tolerance(2e-1, 2e-2)} if in_parts else {}),
        supports=supports,
    )


def decode_attention_kernel(queries: mx.array, keys: mx.array, scale: float) -> DecodeAttention | None:
    """The kernel for these shapes; None where there is none, or no fused source on this device.

    It takes ``(queries [rows, heads, 1, head_dim], new_key, new_value [rows, kv_heads, 1, head_dim], cache_k, cache_v
    [rows, kv_heads, slots, head_dim], bounds)``, where ``bounds`` is int32 ``[rows, 3]``: a row sees its slots below
    the first number, and those from the second up to the third, that one not included. The new key and value are
    written to the last slot that is seen, in place: whoever calls it owns the buffers.
    """
    device = current_device()
    if device is None or device.language != "cuda":
        return None
    rows, kv_heads, slots, head_dim = keys.shape
    group = queries.shape[1] // kv_heads
    if head_dim not in _HEAD_DIMS or group > 8 or not math.isclose(scale, head_dim**-0.5, rel_tol=1e-6):
        return None
    if _parts(rows * kv_heads, slots) == 1:
        return _kernel(head_dim, group, False)
    return _InParts(_kernel(head_dim, group, True))
