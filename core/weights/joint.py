"""Locates the bytes of an array in files: those of one tensor, or of several that are joined or stacked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from core.checkpoint import TensorInfo
from core.weights.nodes import Joined, Leaf, Node, Stacked

_DTYPES = {
    "BF16": mx.bfloat16,
    "F16": mx.float16,
    "F32": mx.float32,
    "I64": mx.int64,
    "I32": mx.int32,
    "U32": mx.uint32,
    "U8": mx.uint8,
}


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes ``start`` to ``stop`` of a shard."""

    shard: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Extent:
    """The runs of bytes that make up an array, in order."""

    dtype: mx.Dtype
    shape: tuple[int, ...]
    runs: tuple[Run, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return sum(run.stop - run.start for run in self.runs)

    def view(self, memory: mx.array) -> mx.array:
        """The array, as a view of flat memory that holds its bytes."""
        return memory.view(self.dtype).reshape(self.shape)


def extent(node: Node, axis: int, tensors: Mapping[str, TensorInfo]) -> Extent | None:
    """Where the bytes of an array are; None if they need a computation, or have different dtypes.

    Args:
        node: the source of the array.
        axis: along which parts are joined, counted from the last.
        tensors: headers.
    """
    if isinstance(node, Leaf):
        info = tensors[node.name]
        if info.dtype not in _DTYPES:
            return None
        return Extent(_DTYPES[info.dtype], info.shape, (Run(info.shard, info.start, info.stop),))
    if not isinstance(node, Joined | Stacked):
        return None
    parts = [extent(part, axis, tensors) for part in node.parts]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or len({part.dtype for part in found}) > 1:
        return None
    first = found[0]
    if isinstance(node, Stacked):
        runs = tuple(run for part in found for run in part.runs)
        return Extent(first.dtype, (len(found), *first.shape), runs)
    place = len(first.shape) + axis
    before, after = first.shape[:place], first.shape[place + 1 :]
    shape = (*before, sum(part.shape[place] for part in found), *after)
    cut = [_cut(part, math.prod(before)) for part in found]
    if any(rows is None for rows in cut):
        return None
    slices = zip(*(rows for rows in cut if rows is not None), strict=True)
    return Extent(first.dtype, shape, tuple(run for together in slices for runs in together for run in runs))


def _cut(part: Extent, count: int) -> list[tuple[Run, ...]] | None:
    """The runs of each of ``count`` equal slices."""
    if count == 1:
        return [part.runs]
    if len(part.runs) > 1:
        return None
    run = part.runs[0]
    size = (run.stop - run.start) // count
    return [(Run(run.shard, run.start + n * size, run.start + (n + 1) * size),) for n in range(count)]
