"""Attention of several new tokens of each row to that row's part of a cache, rows at their own positions.

A block takes a tile of queries of one row that share a key/value head, and only the slots that they see
(FlashAttention-2; Dao, 2023). It reads whole buffers, and bounds in an array, so that nothing is compiled or planned
for a length: MLX's own attention plans each pair of lengths anew, for 34 ms and more, and is several times slower with
a mask. Where the queries are too few to fill the device, blocks share their slots, and a second kernel merges the parts.

Knows arrays; knows no cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from core.kernels import prefill_attention_mma, prefill_attention_wgmma
from core.kernels.compare import Tolerance
from core.kernels.cuda import PRIMITIVES
from core.kernels.fused import Launch
from core.kernels.kernel import Kernel
from core.kernels.prefill_attention_source import BODY, HEADER, MERGE, MERGE_BODY

GRID = 128
"""Slots: parts begin and end on multiples of it."""
_PAD = 4  # floats that a part's rows are longer than a head
# Probabilities are rounded to bfloat16, as FlashAttention's are.
_TOLERANCE = {dtype: Tolerance(2e-2, 2e-2) for dtype in (mx.bfloat16, mx.float16, mx.float32)}


@dataclass(frozen=True)
class Layout:
    """How a source is laid out over a block: its compile-time constants.

    Attributes:
        warps: warps of a block.
        tiles: tiles of 16 queries for each warp.
        keys: slots of a tile; a divisor of ``GRID``.
        stages: tiles of keys and of values in shared memory.
        blocks: blocks of a multiprocessor.
        text: the source's own part.
    """

    name: str
    warps: int
    tiles: int
    keys: int
    stages: int
    blocks: int
    text: str

    @property
    def rows(self) -> int:
        """Queries of a block, those of all heads."""
        return self.warps * self.tiles * 16

    def shared_memory(self, head_dim: int) -> int:
        return (self.rows + 2 * self.stages * self.keys) * head_dim * 2

    def header(self, head_dim: int, name: str, output: str) -> str:
        constants = {
            "HEAD_DIM": head_dim,
            "WARPS": self.warps,
            "TILES": self.tiles,
            "KEYS": self.keys,
            "STAGES": self.stages,
        }
        lines = [f"constexpr int {key} = {value};" for key, value in constants.items()]
        lines.append(f"constexpr float SCORE_SCALE = {head_dim**-0.5 * math.log2(math.e)!r}f;")
        array = "const __nv_bfloat16* {0}, {1}const __grid_constant__ Strides {0}_strides"
        parameters = [
            array.format("queries", "const __grid_constant__ Shape queries_shape, "),
            array.format("cache_k", "const __grid_constant__ Shape cache_k_shape, "),
            array.format("cache_v", ""),
            "const int32_t* bounds, const __grid_constant__ Shape bounds_shape",
            f"{output}* out",
        ]
        # Declared here to say how many threads a block has: registers are shared out by that.
        declaration = (
            f"namespace mlx::core::cu {{ __global__ void __launch_bounds__({self.warps * 32}, {self.blocks}) "
            f"custom_kernel_{name}({', '.join(parameters)}); }}\n"
        )
        space = f"namespace corelm_{name} {{\n" + "\n".join(lines) + HEADER + self.text + "}\n"
        return "#include <cuda_bf16.h>\n" + PRIMITIVES + space + declaration


MMA = Layout("mma", warps=4, tiles=2, keys=64, stages=2, blocks=2, text=prefill_attention_mma.HEADER)
WGMMA = Layout("wgmma", warps=8, tiles=1, keys=128, stages=2, blocks=1, text=prefill_attention_wgmma.HEADER)


def _sees(bounds: mx.array, seq: int, slots: int) -> mx.array:
    """What queries see, bool ``[parts, rows, seq, slots]``."""
    kept, window, start, first, end = (bounds[:, :, i, None, None] for i in range(5))
    slot, query = mx.arange(slots, dtype=mx.int32), start + mx.arange(seq, dtype=mx.int32)[:, None]
    near = (slot > query - window) | (slot < kept)
    return (slot <= query) & near & (slot >= first) & (slot < end)


def _attention(queries: mx.array, cache_k: mx.array, cache_v: mx.array, bounds: mx.array) -> mx.array:
    mask = _sees(bounds, queries.shape[2], cache_k.shape[2])[0][:, None]
    scale = queries.shape[-1] ** -0.5
    attended = mx.fast.scaled_dot_product_attention(queries, cache_k, cache_v, scale=scale, mask=mask)
    return mx.contiguous(attended.transpose(0, 2, 1, 3))


def _parts(queries: mx.array, cache_k: mx.array, cache_v: mx.array, bounds: mx.array) -> mx.array:
    rows, heads, seq, head_dim = queries.shape
    groups = mx.unflatten(queries.astype(mx.float32), 1, (cache_k.shape[1], -1))
    keys, values = (array.astype(mx.float32)[:, :, None] for array in (cache_k, cache_v))
    scores = groups @ keys.swapaxes(-1, -2) * head_dim**-0.5
    sees = _sees(bounds, seq, cache_k.shape[2])[:, :, None, None]
    scores = mx.where(sees, scores, -mx.inf)
    logarithms = mx.logsumexp(scores, axis=-1, keepdims=True)
    weights = mx.where(sees, mx.exp(scores - logarithms), 0.0)
    parts = [weights @ values, mx.repeat(logarithms * math.log2(math.e), _PAD, axis=-1)]
    return mx.concatenate(parts, axis=-1).reshape(-1, rows, heads, seq, head_dim + _PAD).swapaxes(2, 3)


def _merged(parts: mx.array) -> mx.array:
    logarithms = parts[..., -1:]
    weights = mx.exp((logarithms - mx.max(logarithms, axis=0)) * math.log(2))
    return ((weights * parts[..., :-_PAD]).sum(axis=0) / weights.sum(axis=0)).astype(mx.bfloat16)


def _samples(head_dim: int, counts: tuple[int, ...]) -> Callable[[mx.array, mx.Dtype], list[tuple[mx.array, ...]]]:
    everything = 1 << 29
    # rows' starts, queries, heads, key/value heads, slots, kept, window
    shapes = [
        ([0], 70, 8, 2, 96, 0, everything),
        ([411], 33, 4, 4, 450, 0, 100),
        ([0, 7, 300], 150, 8, 1, 450, 5, 64),
        ([20, 0, 500], 40, 12, 2, 540, 140, 90),
    ]

    def samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        found = []
        for (starts, seq, heads, kv_heads, slots, kept, window), part in zip(
            shapes, mx.random.split(key, len(shapes)), strict=True
        ):
            keys = mx.random.split(part, 3)
            queries = mx.random.normal((len(starts), seq, heads, head_dim), key=keys[0]).astype(dtype)
            cache = [mx.random.normal((len(starts), kv_heads, slots, head_dim), key=k).astype(dtype) for k in keys[1:]]
            for count in counts:
                edges = [GRID * (i * (1 + slots // GRID) // count) for i in range(count)] + [everything]
                bounds = [[[kept, window, start, *edges[i : i + 2]] for start in starts] for i in range(count)]
                found.append((queries.transpose(0, 2, 1, 3), *cache, mx.array(bounds, dtype=mx.int32)))
        return found

    return samples


def _supports(head_dim: int, parts: bool) -> Callable[..., bool]:
    def supports(queries: mx.array, cache_k: mx.array, cache_v: mx.array, bounds: mx.array) -> bool:
        rows, kv_heads, _, features = cache_k.shape
        return (
            all(array.dtype == mx.bfloat16 for array in (queries, cache_k, cache_v))
            and features == head_dim
            and (queries.shape[0], queries.shape[3]) == (rows, head_dim)
            and queries.shape[1] % kv_heads == 0
            and cache_k.shape == cache_v.shape
            and bounds.shape == (bounds.shape[0] if parts else 1, rows, 5)
            and bounds.dtype == mx.int32
        )

    return supports


def _kernel(layout: Layout, head_dim: int, *, parts: bool) -> Kernel:
    name = f"prefill_attention_{layout.name}_{head_dim}" + ("_parts" if parts else "")

    def launch(queries: mx.array, cache_k: mx.array, _cache_v: mx.array, bounds: mx.array) -> Launch:
        rows, heads, seq, _ = queries.shape
        kv_heads, count, threads = cache_k.shape[1], bounds.shape[0], layout.warps * 32
        blocks = rows * kv_heads * count * -(-seq * (heads // kv_heads) // layout.rows)
        shape = (rows, seq, heads, head_dim)
        if parts:
            return Launch((blocks * threads, 1, 1), (threads, 1, 1), (count, *shape[:3], head_dim + _PAD), mx.float32)
        return Launch((blocks * threads, 1, 1), (threads, 1, 1), shape, queries.dtype)

    return Kernel(
        name,
        _parts if parts else _attention,
        launch=launch,
        sample_inputs=_samples(head_dim, (1, 3) if parts else (1,)),
        cuda=BODY.replace("SPACE", f"corelm_{name}").replace("FEATURES", "PART_FEATURES" if parts else "HEAD_DIM"),
        header=layout.header(head_dim, name, "float" if parts else "__nv_bfloat16"),
        shared_memory=layout.shared_memory(head_dim),
        in_place=True,
        tolerance=_TOLERANCE,
        supports=_supports(head_dim, parts),
    )


def _merge_kernel(head_dim: int) -> Kernel:
    def launch(parts: mx.array) -> Launch:
        _, rows, seq, heads, _ = parts.shape
        threads = rows * seq * heads * head_dim // 4
        return Launch((threads, 1, 1), (min(threads, 256), 1, 1), (rows, seq, heads, head_dim), mx.bfloat16)

    def samples(key: mx.array, _dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        found = []
        for shape, part in zip(((2, 3, 33, 4), (5, 1, 7, 3)), mx.random.split(key, 2), strict=True):
            keys = mx.random.split(part, 2)
            values = mx.random.normal((*shape, head_dim), key=keys[0])
            logarithms = 4 * mx.random.normal((*shape, 1), key=keys[1])
            logarithms[1, :, ::2] = -mx.inf  # a part of which a query sees nothing
            found.append((mx.concatenate([values, mx.repeat(logarithms, _PAD, axis=-1)], axis=-1),))
        return found

    return Kernel(
        f"merge_attention_{head_dim}",
        _merged,
        launch=launch,
        sample_inputs=samples,
        cuda=MERGE_BODY.replace("SPACE", f"corelm_merge_attention_{head_dim}"),
        header=f"#include <cuda_bf16.h>\n{PRIMITIVES}namespace corelm_merge_attention_{head_dim} {{\n"
        f"constexpr int HEAD_DIM = {head_dim};\n{MERGE}}}\n",
        supports=lambda parts: parts.ndim == 5 and parts.dtype == mx.float32 and parts.shape[-1] == head_dim + _PAD,
    )


KERNELS = {
    (layout.name, head_dim): (_kernel(layout, head_dim, parts=False), _kernel(layout, head_dim, parts=True))
    for layout in (MMA, WGMMA)
    for head_dim in (64, 128)
}
MERGE_KERNELS = {head_dim: _merge_kernel(head_dim) for head_dim in (64, 128)}
