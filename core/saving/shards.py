"""Plans the files of a checkpoint: which tensors go into which file, their headers, and their index.

All of it is fixed before any tensor is computed: headers are written first, and tensors follow in their places.

Format: https://github.com/huggingface/safetensors#format; names and index as transformers and mlx-lm write them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from core.saving.table import Tensor
from core.weights.dtypes import SPELLINGS

DEFAULT_SHARD_SIZE = 5_000_000_000
_ALIGNMENT = 8  # of the data in its file, as in safetensors' own writer


@dataclass(frozen=True)
class Shard:
    """One file: its tensors in the order of their data.

    Attributes:
        format: the value in the header's metadata: ``"pt"`` or ``"mlx"``.
    """

    name: str
    tensors: tuple[Tensor, ...]
    format: str

    @cached_property
    def header(self) -> bytes:
        """The bytes of the file before its first tensor."""
        entries: dict[str, object] = {"__metadata__": {"format": self.format}}
        stop = 0
        for tensor in self.tensors:
            start, stop = stop, stop + tensor.nbytes
            shape = list(tensor.shape)
            entries[tensor.name] = {"dtype": SPELLINGS[tensor.dtype], "shape": shape, "data_offsets": [start, stop]}
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


def index_name(stem: str) -> str:
    """The name of the index file."""
    return f"{stem}.safetensors.index.json"


def plan_shards(tensors: Sequence[Tensor], limit: int, format: str, stem: str = "model") -> tuple[Shard, ...]:
    """The files, each with at most ``limit`` bytes of tensors; a larger tensor has a file of its own.

    Args:
        tensors: in the order in which they are written.
        limit: bytes.
        format: the value in the headers' metadata.
        stem: the beginning of the files' names.
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
