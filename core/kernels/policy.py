"""Which CUDA device takes which source, and the numbers that were tuned on devices.

A device is known by its compute capability (the major number) and its multiprocessors. What a source can compute at
all, such as sizes of heads, stands beside the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

MULTIPROCESSORS = 132
"""An H100's, for which numbers below were chosen; assumed where the driver does not say."""

ELEMENTWISE_THREADS = 256
"""Threads of a block of kernels in which each thread has a few elements to itself."""

# Products of a few rows with a quantized matrix (benchmarks/LOG.md, 10).
FEW_ROWS_WARPS = 8
FEW_ROWS_LEAST_CHUNKS = 4
"""Chunks that a part has at least: with fewer, a block waits for its first one longer than it computes."""


def few_rows_blocks(row_tiles: int) -> int:
    """Blocks of a multiprocessor: for two there are too few registers where a warp has two tiles of the matrix."""
    return 2 if row_tiles == 1 else 1


def few_rows_tiles(batch_tiles: int, *, in_parts: bool) -> int:
    """Tiles of the matrix for each warp, where its rows are enough for two.

    Two tiles for each warp read the rows of ``x`` from shared memory half as often; one leaves registers for a second
    block, whose warps hide how long memory takes.
    """
    return 2 if batch_tiles == 8 or not in_parts else 1


# Attention of one new token (benchmarks/LOG.md, 9).
DECODE_WARPS = 8
DECODE_BLOCKS = 264
"""Blocks that fill a device: two for each multiprocessor of the largest."""
DECODE_SMALLEST_PART = 256
"""Keys of a part: a tile for each warp, twice."""
DECODE_BLOCKS_TOGETHER = 2
"""Blocks of a multiprocessor."""

# Attention of several new tokens (benchmarks/LOG.md, 9).
PREFILL_MOST_PARTS = 16
PREFILL_UNIT = 128
"""Slots, in which what blocks read is counted."""

Products = Literal["mma", "wgmma"]


class Tiles(NamedTuple):
    """How attention of several new tokens is laid out; ``Layout`` says what the numbers are."""

    warps: int
    tiles: int
    keys: int
    blocks: int


# The fastest of several, measured on an H200: Hopper's products are half as fast again as those that all devices
# know, and 64 features leave the registers for two blocks that wait for each other's softmax.
PREFILL_TILES: Mapping[tuple[Products, int], Tiles] = {
    ("mma", 64): Tiles(warps=4, tiles=2, keys=64, blocks=2),
    ("mma", 128): Tiles(warps=4, tiles=2, keys=64, blocks=2),
    ("wgmma", 64): Tiles(warps=4, tiles=1, keys=128, blocks=2),
    ("wgmma", 128): Tiles(warps=8, tiles=1, keys=128, blocks=1),
}
"""By the products and the features of a head."""


def prefill_products(capability: int) -> tuple[Products, ...]:
    """The products that a device has the instructions of, the fastest first."""
    if capability == 9:
        return "wgmma", "mma"
    return ("mma",) if capability >= 8 else ()


# The decode step as one kernel.
STEP_CAPABILITY = 9
"""The only one that it is written for."""
STEP_SHARED_BYTES = 227 * 1024
"""Shared memory of a block on a device of compute capability 9.0."""
STEP_THREADS = 256
STEP_MOST_STAGES = 8
"""Units of weights that a warp has in flight."""
