"""A product of a few rows with a quantized matrix, on the tensor cores: what a batch of sequences decodes with.

Weights are read once, in the order in which they lie, and become bfloat16 in registers, rounded once, as
``core.kernels.dequantize`` makes them; the rows lie in shared memory, and sums are float32. A matrix whose rows occupy
few blocks is cut along its features as well, and a second kernel sums the parts: most of a decode step's matrices have
4,096 rows, which are 16 blocks for 132 multiprocessors. MLX's own product reads at a third of the memory's speed from
two rows on, and compiles for half a minute at its first use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from core.kernels.compare import Tolerance
from core.kernels.cuda_text import constants, declaration
from core.kernels.dequantize import rounded_once
from core.kernels.device import current_device
from core.kernels.fused import Launch
from core.kernels.kernel import Kernel
from core.kernels.source_files import CUDA, source_text
from core.kernels.sum_parts import sum_parts

MOST_ROWS = 64
GROUP_SIZE = 64
_WARPS = 8
_MULTIPROCESSORS = 132  # of the devices for which parts were chosen (benchmarks/LOG.md, 10)
_CHUNKS = 4  # that a part has at least: fewer, and a block waits for its first one more than it computes


class FewRows(Protocol):
    """What ``few_rows_kernel`` gives: ``(x, weight, scales, biases) -> product``."""

    def takes(self, *inputs: mx.array) -> bool:
        """Whether a fused source would run on these inputs, here; may run its check."""
        ...

    def __call__(self, *inputs: mx.array) -> mx.array: ...


class InParts:
    """The kernel that leaves a product for each part of the features, and the one that sums them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def takes(self, *inputs: mx.array) -> bool:
        return self.kernel.takes(*inputs)

    def __call__(self, *inputs: mx.array) -> mx.array:
        return sum_parts(self.kernel(*inputs))


@dataclass(frozen=True)
class _Shape:
    """How a product is laid out over warps: compile-time constants of the source.

    Attributes:
        batch_tiles: tiles of 8 rows of ``x``.
        row_tiles: tiles of 16 rows of the matrix for each warp.
        in_parts: blocks share the features, too.
    """

    bits: int
    batch_tiles: int
    row_tiles: int
    in_parts: bool

    @property
    def name(self) -> str:
        return f"few_rows_{self.bits}_{self.batch_tiles}_{self.row_tiles}" + ("_parts" if self.in_parts else "")

    @property
    def chunk(self) -> int:
        """Features of ``x`` that a block holds at a time: two slices for each warp, and rows of at least 512 bytes."""
        return max(256, 1024 // self.bits)

    @property
    def block_rows(self) -> int:
        return _WARPS * self.row_tiles * 16

    @property
    def blocks(self) -> int:
        """That a multiprocessor runs at a time: two have too few registers for two tiles of the matrix."""
        return 2 if self.row_tiles == 1 else 1

    @property
    def shared_memory(self) -> int:
        columns = 8 * self.batch_tiles
        return max(2 * columns * (self.chunk * 2 + 64), self.block_rows * (columns + 1) * 4)

    def parts(self, rows: int, features: int) -> int:
        """Into how many parts the features of a matrix are cut: as many as fill a device with blocks."""
        parts = 1
        blocks, chunks = rows // self.block_rows, features // self.chunk
        while 2 * parts * blocks <= self.blocks * _MULTIPROCESSORS and chunks >= 2 * parts * _CHUNKS:
            parts *= 2
        return parts

    @property
    def header(self) -> str:
        values = {
            "BITS": self.bits,
            "BATCH_TILES": self.batch_tiles,
            "ROW_TILES": self.row_tiles,
            "CHUNK": self.chunk,
            "WARPS": _WARPS,
        }
        parameters = [
            "const __nv_bfloat16* x",
            "const __grid_constant__ Shape x_shape",
            "const __grid_constant__ int x_ndim",
            "const uint32_t* weight",
            "const __nv_bfloat16* scales",
            "const __nv_bfloat16* biases",
            f"{'float' if self.in_parts else '__nv_bfloat16'}* out",
        ]
        declared = declaration(self.name, _WARPS * 32, self.blocks, parameters)
        return constants("corelm_few_rows", values) + source_text(CUDA / "few_rows.cuh") + declared


def _reference(shape: _Shape) -> Callable[[mx.array, mx.array, mx.array, mx.array], mx.array]:
    def few_rows(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
        return x @ rounded_once(weight, scales, biases, GROUP_SIZE, shape.bits).T

    def in_parts(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
        floats = rounded_once(weight, scales, biases, GROUP_SIZE, shape.bits).astype(mx.float32)
        rows, features = floats.shape
        parts = shape.parts(rows, features)
        each = -(-features // shape.chunk // parts) * shape.chunk
        x = x.astype(mx.float32)
        return mx.stack(
            [x[..., i * each : (i + 1) * each] @ floats[:, i * each : (i + 1) * each].T for i in range(parts)]
        )

    return in_parts if shape.in_parts else few_rows


def _kernel(shape: _Shape) -> Kernel:
    words = 32 // shape.bits
    error = Tolerance(4e-2, 1.6e-2)

    def launch(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> Launch:
        rows = weight.shape[0]
        threads = _WARPS * 32
        grid, output = rows // shape.block_rows * threads, (*x.shape[:-1], rows)
        if not shape.in_parts:
            return Launch((grid, 1, 1), (threads, 1, 1), output, x.dtype)
        parts = shape.parts(rows, x.shape[-1])
        return Launch((grid, parts, 1), (threads, 1, 1), (parts, *output), mx.float32)

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
        sizes = ((most, shape.chunk + slice_), (most - 3, (9 if shape.in_parts else 2) * shape.chunk), (1, slice_))
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
        _reference(shape),
        launch=launch,
        sample_inputs=samples,
        cuda=source_text(CUDA / "few_rows.cu"),
        header=shape.header,
        shared_memory=shape.shared_memory,
        # Sums cancel: their error is that of their terms, not of the result.
        tolerance={mx.float16: Tolerance(5e-3, 2e-3), mx.bfloat16: error}
        | ({mx.float32: error} if shape.in_parts else {}),
        supports=supports,
    )


def _made(shape: _Shape) -> FewRows:
    kernel = _kernel(shape)
    return InParts(kernel) if shape.in_parts else kernel


_KERNELS: Mapping[_Shape, FewRows] = {
    shape: _made(shape)
    for bits in (4, 8)
    for tiles in (1, 2, 4, 8)
    for shape in (_Shape(bits, tiles, rows, in_parts) for rows in (1, 2) for in_parts in (False, True))
    if tiles == 8 or shape.row_tiles == 1 or not shape.in_parts
}


def _shape(bits: int, batch_tiles: int, rows: int, features: int) -> _Shape:
    """The layout for a matrix of so many rows and features (benchmarks/LOG.md, 10).

    Two tiles for each warp read the rows of ``x`` from shared memory half as often; one leaves registers for a second
    block, whose warps hide how long memory takes.
    """
    two_fit = rows % (2 * _WARPS * 16) == 0
    in_parts = _Shape(bits, batch_tiles, 2 if batch_tiles == 8 and two_fit else 1, True)
    if in_parts.parts(rows, features) > 1:
        return in_parts
    return _Shape(bits, batch_tiles, 2 if two_fit else 1, False)


def few_rows_kernel(rows: int, weight: mx.array, bits: int, group_size: int, mode: str) -> FewRows | None:
    """The kernel for so many rows and this matrix; None where there is none, or no fused source on this device.

    Args:
        weight: packed, ``[output_dims, words]``.
    """
    device = current_device()
    if device is None or device.language != "cuda" or rows > MOST_ROWS or mode != "affine" or group_size != GROUP_SIZE:
        return None
    if bits not in (4, 8):
        return None
    tiles = next(tiles for tiles in (1, 2, 4, 8) if rows <= 8 * tiles)
    return _KERNELS[_shape(bits, tiles, weight.shape[0], weight.shape[1] * 32 // bits)]
