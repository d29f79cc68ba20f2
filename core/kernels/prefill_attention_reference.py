"""What attention of several new tokens is: the definition, in float32, of the whole and of parts; and samples of it.

MLX's own attention would plan each of these shapes, which takes longer than to compute them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from core.kernels.merge_parts import NOTHING

EVERYTHING = 1 << 29
"""A window that no buffer fills."""


def whole(queries: mx.array, cache_k: mx.array, cache_v: mx.array, bounds: mx.array) -> mx.array:
    """``[rows, seq, heads, head_dim]`` in the dtype of the queries; arguments as of ``prefill_attention_kernel``."""
    shown = _shown(bounds, queries.shape[2], cache_k.shape[2])[:, None, None]
    found = _attend(queries, cache_k, cache_v, shown)
    return found[:, :, :, 0, : queries.shape[3]].astype(queries.dtype)


def in_parts(
    queries: mx.array, cache_k: mx.array, cache_v: mx.array, bounds: mx.array, *, block: int, keys: int, parts: int
) -> mx.array:
    """float32 ``[rows, seq, heads, parts, head_dim + 2]``, as ``merge_parts`` takes it.

    Args:
        block: queries of a block, those of all heads that share a key/value head; it deals out what its queries see.
        keys: slots of a tile; parts are tiles.
        parts: into how many.
    """
    _, heads, seq, _ = queries.shape
    kv_heads, slots = cache_k.shape[1:3]
    group = heads // kv_heads
    kept, window, start = (bounds[:, i, None, None, None] for i in range(3))
    place = mx.arange(seq) * group + mx.arange(group)[:, None]
    first = mx.tile(place // block * block // group, (kv_heads, 1))[..., None]
    last = mx.tile(mx.minimum((place // block * block + block - 1) // group, seq - 1), (kv_heads, 1))[..., None]
    low, high = start + first, start + last  # [rows, heads, seq, 1]
    fronts = (mx.minimum(kept, high + 1) + keys - 1) // keys
    near = mx.maximum(fronts, mx.maximum(low - window + 1, 0) // keys)
    each = (fronts + high // keys + 1 - near + parts - 1) // parts
    tile = mx.arange(slots) // keys
    order = mx.where(tile < fronts, tile, tile - near + fronts)  # among those that a block sees
    mine = (order // each)[:, :, None] == mx.arange(parts)[:, None, None]
    return _attend(queries, cache_k, cache_v, mine & _shown(bounds, seq, slots)[:, None, None])


def _shown(bounds: mx.array, seq: int, slots: int) -> mx.array:
    """What queries see, bool ``[rows, seq, slots]``."""
    kept, window, start = (bounds[:, i, None, None] for i in range(3))
    slot, query = mx.arange(slots), start + mx.arange(seq)[:, None]
    return (slot <= query) & ((slot > query - window) | (slot < kept))


def _attend(queries: mx.array, cache_k: mx.array, cache_v: mx.array, shown: mx.array) -> mx.array:
    """``in_parts``, from what each part shows: bool ``[rows, heads or 1, parts, seq, slots]``."""
    group = queries.shape[1] // cache_k.shape[1]
    keys, values = (mx.repeat(array.astype(mx.float32), group, axis=1)[:, :, None] for array in (cache_k, cache_v))
    scores = queries.astype(mx.float32)[:, :, None] @ keys.swapaxes(-1, -2) * queries.shape[3] ** -0.5
    scores = mx.where(shown, scores, NOTHING)  # [rows, heads, parts, seq, slots]
    scale = mx.logsumexp(scores, axis=-1, keepdims=True)
    weights = mx.where(shown, mx.exp(scores - scale), 0.0)
    anything = mx.any(shown, axis=-1, keepdims=True)
    statistics = [mx.where(anything, scale * math.log2(math.e), NOTHING), anything.astype(mx.float32)]
    return mx.concatenate(
        [weights @ values, *(mx.broadcast_to(one, scale.shape) for one in statistics)], axis=-1
    ).transpose(0, 3, 1, 2, 4)


def samples(head_dim: int) -> Callable[[mx.array, mx.Dtype], list[tuple[mx.array, ...]]]:
    """For a kernel's ``sample_inputs``."""
    # rows' first slots, queries, heads, key/value heads, slots, kept, window
    shapes = [
        ([0], 70, 2, 1, 96, 0, EVERYTHING),
        ([411], 33, 2, 2, 450, 0, 100),
        ([7, 130], 21, 4, 1, 160, 5, 64),
        ([20, 380], 20, 3, 1, 400, 140, 90),
        ([0, 60, 31], 9, 2, 1, 70, 0, 20),
    ]

    def made(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        found = []
        for (starts, seq, heads, kv_heads, slots, kept, window), part in zip(
            shapes, mx.random.split(key, len(shapes)), strict=True
        ):
            keys = mx.random.split(part, 3)
            queries = mx.random.normal((len(starts), seq, heads, head_dim), key=keys[0]).astype(dtype)
            cache = [mx.random.normal((len(starts), kv_heads, slots, head_dim), key=k).astype(dtype) for k in keys[1:]]
            bounds = mx.array([[kept, window, start] for start in starts], dtype=mx.int32)
            found.append((queries.swapaxes(1, 2), *cache, bounds))
        return found

    return made
