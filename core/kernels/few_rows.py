"""A product of a few rows with a quantized matrix, on the tensor cores: what a batch of sequences decodes with.

Weights are read once, in the order in which they lie, and become bfloat16 in registers, rounded once, as
``core.kernels.dequantize`` makes them; the rows lie in shared memory, and sums are float32. MLX's own product reads at
a third of the memory's speed from two rows on, and compiles for half a minute at its first use.

Knows the packing of 4 and 8 bits; knows no module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from core.kernels.compare import Tolerance
from core.kernels.cuda import PRIMITIVES
from core.kernels.dequantize import rounded_once
from core.kernels.device import current_device
from core.kernels.few_rows_source import BODY, HEADER
from core.kernels.fused import Launch
from core.kernels.kernel import Kernel

MOST_ROWS = 64
GROUP_SIZE = 64
_WARPS = 8


@dataclass(frozen=True)
class _Shape:
    """How a product is laid out over warps: compile-time constants of the source.

    Attributes:
        batch_tiles: tiles of 8 rows of ``x``.
        row_tiles: tiles of 16 rows of the matrix for each warp.
        split: warps that share a tile, each with a part of the features.
    """

    bits: int
    batch_tiles: int
    row_tiles: int
    split: int

    @property
    def name(self) -> str:
        return f"few_rows_{self.bits}_{self.batch_tiles}_{self.row_tiles}_{self.split}"

    @property
    def chunk(self) -> int:
        """Features of ``x`` that a block holds at a time: two slices for each warp, and rows of at least 512 bytes."""
        return max(256, 2 * self.split * 512 // self.bits)

    @property
    def block_rows(self) -> int:
        return _WARPS // self.split * self.row_tiles * 16

    @property
    def shared_memory(self) -> int:
        columns = 8 * self.batch_tiles
        return max(2 * columns * (self.chunk * 2 + 64), self.split * self.block_rows * (columns + 1) * 4)

    @property
    def header(self) -> str:
        constants = {
            "BITS": self.bits,
            "BATCH_TILES": self.batch_tiles,
            "ROW_TILES": self.row_tiles,
            "SPLIT": self.split,
            "CHUNK": self.chunk,
            "WARPS": _WARPS,
        }
        lines = [f"constexpr int {name} = {value};" for name, value in constants.items()]
        # Declared here to say how many threads a block has: registers are shared out by that.
        declaration = (
            f"namespace mlx::core::cu {{ __global__ void __launch_bounds__({_WARPS * 32}) custom_kernel_{self.name}("
            "const __nv_bfloat16* x, const __grid_constant__ Shape x_shape, const __grid_constant__ int x_ndim, "
            "const uint32_t* weight, const __nv_bfloat16* scales, const __nv_bfloat16* biases, __nv_bfloat16* out); }"
        )
        return "\n".join(["#include <cuda_bf16.h>", PRIMITIVES, *lines, HEADER, declaration, ""])


def _product(bits: int) -> Callable[[mx.array, mx.array, mx.array, mx.array], mx.array]:
    def few_rows(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
        return x @ rounded_once(weight, scales, biases, GROUP_SIZE, bits).T

    return few_rows


def _kernel(shape: _Shape) -> Kernel:
    words = 32 // shape.bits

    def launch(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> Launch:
        blocks = weight.shape[0] // shape.block_rows
        threads = _WARPS * 32
        return Launch((blocks * threads, 1, 1), (threads, 1, 1), (*x.shape[:-1], weight.shape[0]), x.dtype)

    def supports(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> bool:
        features = x.shape[-1]
        return (
            all(array.dtype == mx.bfloat16 for array in (x, scales, biases))
            and weight.ndim == 2
            and weight.shape[-1] * words == features
            and scales.shape == biases.shape == (weight.shape[0], features // GROUP_SIZE)
            and features % (512 // shape.bits) == 0
            and weight.shape[0] % shape.block_rows == 0
            and x.size // features <= 8 * shape.batch_tiles
        )

    def samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        found = []
        most, slice_ = 8 * shape.batch_tiles, 512 // shape.bits
        sizes = ((most, shape.chunk + slice_), (most - 3, 2 * shape.chunk), (1, slice_))
        for (rows, features), part in zip(sizes, mx.random.split(key, 3), strict=True):
            keys = mx.random.split(part, 4)
            matrix = (2 * shape.block_rows, features // words)
            low, high = mx.random.randint(0, 1 << 16, (2, *matrix), dtype=mx.uint32, key=keys[0])
            size = (2 ** (shape.bits - 1) * features**0.5) ** -1  # results near 1
            groups = [
                (size * mx.random.normal((matrix[0], features // GROUP_SIZE), key=one)).astype(dtype)
                for one in keys[1:3]
            ]
            found.append((mx.random.normal((rows, features), key=keys[3]).astype(dtype), low | (high << 16), *groups))
        return found

    return Kernel(
        shape.name,
        _product(shape.bits),
        launch=launch,
        sample_inputs=samples,
        cuda=BODY,
        header=shape.header,
        shared_memory=shape.shared_memory,
        # Sums cancel: their error is that of their terms, not of the result.
        tolerance={mx.float16: Tolerance(5e-3, 2e-3), mx.bfloat16: Tolerance(4e-2, 1.6e-2)},
        supports=supports,
    )


# Two tiles for each warp read the rows from shared memory half as often; two warps that share a tile fill the device
# where the matrix is small and the rows are few (benchmarks/LOG.md, 8).
_LAYOUTS = ((2, 1), (2, 2))
_KERNELS: Mapping[tuple[int, int, int], Kernel] = {
    (bits, tiles, split): _kernel(_Shape(bits, tiles, rows, split))
    for bits in (4, 8)
    for tiles in (1, 2, 4, 8)
    for rows, split in _LAYOUTS
}


def few_rows_kernel(rows: int, weight: mx.array, bits: int, group_size: int, mode: str) -> Kernel | None:
    """The kernel for so many rows and this matrix; None where there is none, or no fused source on this device.

    Args:
        weight: packed, ``[output_dims, words]``.
    """
    device = current_device()
    if device is None or device.language != "cuda" or rows > MOST_ROWS or mode != "affine" or group_size != GROUP_SIZE:
        return None
    tiles = next(tiles for tiles in (1, 2, 4, 8) if rows <= 8 * tiles)
    small = rows <= 16 and weight.shape[0] <= 8192
    return _KERNELS.get((bits, tiles, 2 if small or weight.shape[0] % 256 else 1))
