"""Which tensors go into which file, and what the files' headers and their index say.

All of it is known before a byte of a tensor is: headers come first, and tensors stream into their places behind them.

Format: https://github.com/huggingface/safetensors#format; names and index as transformers and mlx-lm have them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from core.saving.table import DTYPES, Tensor

DEFAULT_SHARD_SIZE = 5_000_000_000
_ALIGNMENT = 8  # of the data in its file, as safetensors' own writer has it


@dataclass(frozen=True)
class Shard:
    """One file: its tensors in the order of their data.

    Attributes:
        format: what the header's metadata says: ``"pt"`` or ``"mlx"``.
    """

    name: str
    tensors: tuple[Tensor, ...]
    format: str

    @cached_property
    def header(self) -> bytes:
        """The file up to its first tensor."""
        entries: dict[str, object] = {"__metadata__": {"format": self.format}}
        stop = 0
        for tensor in self.tensors:
            start, stop = stop, stop + tensor.nbytes
            shape = list(tensor.shape)
            entries[tensor.name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [start, stop]}
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


def index_name(stem: str) -> str:
    """The file that tells which shard holds which tensor."""
    return f"{stem}.safetensors.index.json"


def plan_shards(tensors: Sequence[Tensor], limit: int, format: str, stem: str = "model") -> tuple[Shard, ...]:
    """The files, each with at most ``limit`` bytes of tensors; a larger tensor has one to itself.

    Args:
        stem: how their names begin.
    """
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    if len(groups) == 1:
        return (Shard(f"{stem}.safetensors", tuple(groups[0]), format),)
    return tuple(
        Shard(f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors", tuple(group), format)
        for number, group in enumerate(groups, 1)
    )


def index_of(shards: Sequence[Shard], parameters: int) -> dict[str, object] | None:
    """The index that tells which file holds which tensor; None for a single file, which needs none."""
    if len(shards) == 1:
        return None
    size = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    places = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    return {
        "metadata": {"total_size": size, "total_parameters": parameters},
        "weight_map": dict(sorted(places.items())),
    }
