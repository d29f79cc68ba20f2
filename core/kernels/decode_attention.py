"""Attention of one new token of each row to that row's part of the cache, which it joins, rows at their own positions.

A block takes one key/value head of one row; query heads that share it are rows of a tensor-core product
(FlashAttention-2's arrangement; Dao, 2023). It reads whole buffers, and bounds in an array, so that nothing of a step
depends on how long the sequences are, and writes the new key and value in place: MLX would copy the buffers, because
the step before still reads them when the host builds the next. Knows arrays; knows no cache.

No clusters of blocks: MLX 0.32 updates its CUDA graphs from one step to the next, and kernels that come after one with
clusters of its own computed nonsense (benchmarks/LOG.md, 9).
"""

from __future__ import annotations

import functools
import math

import mlx.core as mx

from core.kernels.compare import Tolerance
from core.kernels.cuda import PRIMITIVES
from core.kernels.decode_attention_source import BODY, HEADER
from core.kernels.device import current_device
from core.kernels.fused import Launch
from core.kernels.kernel import Kernel

_WARPS = 8
_FILL = 64  # blocks from which a device is busy enough
_HEAD_DIMS = (64, 128)


def _reference(
    queries: mx.array, new_key: mx.array, new_value: mx.array, cache_k: mx.array, cache_v: mx.array, bounds: mx.array
) -> mx.array:
    kept, first, last = (bounds[:, i, None] for i in range(3))
    slots = mx.arange(cache_k.shape[2], dtype=mx.int32)
    written = (slots == last - 1)[:, None, :, None]
    keys, values = mx.where(written, new_key, cache_k), mx.where(written, new_value, cache_v)
    mask = ((slots < kept) | ((slots >= first) & (slots < last)))[:, None, None]
    scale = queries.shape[-1] ** -0.5
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


@functools.cache
def _kernel(head_dim: int, group: int) -> Kernel:
    name = f"decode_attention_{head_dim}_{group}"
    space = f"corelm_{name}"
    constants = {"HEAD_DIM": head_dim, "GROUP": group, "WARPS": _WARPS}
    lines = [f"constexpr int {key} = {value};" for key, value in constants.items()]
    lines.append(f"constexpr float SCORE_SCALE = {head_dim**-0.5 * math.log2(math.e)!r}f;")
    text = f"namespace {space} {{\n" + "\n".join(lines) + HEADER
    array = "const __nv_bfloat16* {0}, {1}const __grid_constant__ Strides {0}_strides"
    parameters = [array.format(one, "") for one in ("queries", "new_key", "new_value")]
    parameters += [
        array.format("cache_k", "const __grid_constant__ Shape cache_k_shape, "),
        array.format("cache_v", ""),
    ]
    declaration = (  # to say how many threads a block has: registers are shared out by that
        f"namespace mlx::core::cu {{ __global__ void __launch_bounds__({_WARPS * 32}, 2) custom_kernel_{name}("
        f"{', '.join(parameters)}, const int32_t* bounds, __nv_bfloat16* out); }}\n"
    )

    def launch(queries: mx.array, *others: mx.array) -> Launch:
        rows, kv_heads = others[2].shape[:2]
        threads = _WARPS * 32
        return Launch((rows * kv_heads * threads, 1, 1), (threads, 1, 1), queries.shape, queries.dtype)

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
        for (rows, capacity), part in zip(((3, 700), (1, 33)), mx.random.split(key, 2), strict=True):
            keys = mx.random.split(part, 5)
            new = [mx.random.normal((rows, 2, 1, head_dim), key=one).astype(dtype) for one in keys[:2]]
            held = [mx.random.normal((rows, 2, capacity, head_dim), key=one).astype(dtype) for one in keys[2:4]]
            queries = mx.random.normal((rows, 2 * group, 1, head_dim), key=keys[4]).astype(dtype)
            some = [[0, 0, 1 + capacity // 3], [4, 9, capacity], [0, capacity - 1, capacity]]
            found.append((queries, *new, *held, mx.array(some[:rows], dtype=mx.int32)))
        return found

    return Kernel(
        name,
        _reference,
        launch=launch,
        sample_inputs=samples,
        cuda=BODY.replace("SPACE", space).replace("GROUP", str(group)).replace("HEAD_DIM", str(head_dim)),
        header="#include <cuda_bf16.h>\n" + PRIMITIVES + text + declaration,
        in_place=True,
        # Probabilities are rounded to bfloat16, as FlashAttention's are.
        tolerance={mx.bfloat16: Tolerance(2e-2, 2e-2)},
        supports=supports,
    )


def decode_attention_kernel(queries: mx.array, keys: mx.array, scale: float, *, masked: bool) -> Kernel | None:
    """The kernel for these shapes; None where there is none that is faster, or no fused source on this device.

    It takes ``(queries [rows, heads, 1, head_dim], new_key, new_value [rows, kv_heads, 1, head_dim], cache_k, cache_v
    [rows, kv_heads, slots, head_dim], bounds)``, where ``bounds`` is int32 ``[rows, 3]``: a row sees its slots below
    the first number, and those from the second up to the third, that one not included. The new key and value are
    written to the last slot that is seen, in place: whoever calls it owns the buffers.

    Args:
        masked: without the kernel, attention would need a mask, which costs MLX several times its time.
    """
    device = current_device()
    if device is None or device.language != "cuda":
        return None
    rows, kv_heads, _, head_dim = keys.shape
    group = queries.shape[1] // kv_heads
    # MLX's own attention splits the keys of one sequence over the device; this one needs rows to fill it.
    if head_dim not in _HEAD_DIMS or group > 8 or (rows * kv_heads < _FILL and not masked):
        return None
    return _kernel(head_dim, group) if math.isclose(scale, head_dim**-0.5, rel_tol=1e-6) else None
