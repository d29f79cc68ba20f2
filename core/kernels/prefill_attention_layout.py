"""How attention of several new tokens is laid out over blocks and warps, and the CUDA text of that."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.kernels.cuda_text import constants, declaration, strided
from core.kernels.merge_parts import NOTHING
from core.kernels.source_files import CUDA, source_text

HEAD_DIMS = (64, 128)


@dataclass(frozen=True)
class Layout:
    """A source and its compile-time constants.

    Attributes:
        name: which instructions multiply: ``mma`` or ``wgmma``.
        head_dim: features of a head.
        warps: warps of a block.
        tiles: tiles of 16 queries for each warp.
        keys: slots of a tile of keys; shared memory holds two, and two of values.
        blocks: blocks of a multiprocessor.
    """

    name: str
    head_dim: int
    warps: int
    tiles: int
    keys: int
    blocks: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps * 32

    @property
    def rows(self) -> int:
        """Queries of a block, those of all heads."""
        return self.warps * self.tiles * 16

    @property
    def shared_memory(self) -> int:
        """Bytes of a block."""
        return (self.rows + 4 * self.keys) * self.head_dim * 2

    def source(self, name: str, *, parts: bool) -> tuple[str, str]:
        """The header and the body of a kernel of this name, which leaves parts or the whole."""
        values = {
            "HEAD_DIM": self.head_dim,
            "WARPS": self.warps,
            "TILES": self.tiles,
            "KEYS": self.keys,
            "SCORE_SCALE": self.head_dim**-0.5 * math.log2(math.e),
            "NOTHING": NOTHING,
            "PARTS": parts,
        }
        arrays = [strided(one, shape=one != "cache_v") for one in ("queries", "cache_k", "cache_v")]
        out = f"{'float' if parts else '__nv_bfloat16'}* out"
        declared = declaration(name, self.threads, self.blocks, [*arrays, "const int32_t* bounds", out])
        text = source_text(CUDA / f"prefill_attention_{self.name}.cuh")
        return constants("corelm_prefill", values) + text + declared, source_text(CUDA / "prefill_attention.cu")


# The fastest of several, measured on an H200: Hopper's products are half as fast again as those that all devices
# know, and 64 features leave the registers for two blocks that wait for each other's softmax.
_MMA = {dim: Layout("mma", dim, warps=4, tiles=2, keys=64, blocks=2) for dim in HEAD_DIMS}
_WGMMA = {
    64: Layout("wgmma", 64, warps=4, tiles=1, keys=128, blocks=2),
    128: Layout("wgmma", 128, warps=8, tiles=1, keys=128, blocks=1),
}
LAYOUTS = (*_MMA.values(), *_WGMMA.values())


def runs(layout: Layout, capability: int) -> bool:
    """Whether a device of this compute capability (major) has the instructions of a layout."""
    return capability == 9 if layout.name == "wgmma" else capability >= 8


def layout_for(capability: int, head_dim: int) -> Layout | None:
    """The fastest that a device of this compute capability (major) runs; None where there is none."""
    if capability < 8:
        return None
    return (_WGMMA if capability == 9 else _MMA).get(head_dim)
