"""Reads the headers of all shards, and checks them against the index: the result is one table of tensors.

It does not check whether the tensors are those of the model; the plan of a load does.
"""

from __future__ import annotations

from collections.abc import Iterator

from core.checkpoint.bounded_json import shown
from core.checkpoint.header import TensorInfo, read_header
from core.checkpoint.layout import Layout
from core.checkpoint.storage import Storage
from core.errors import CheckpointError


def read_tensors(storage: Storage, layout: Layout) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint by name, shard by shard, in the order of their data.

    Tensors that a shard holds and the index does not mention are included, so that a plan can report them.

    Raises:
        CheckpointError: a shard breaks the format, two shards hold one tensor, or the index places a tensor where it
            is not.
    """

    tensors: dict[str, TensorInfo] = {}
    for shard, found in zip(layout.shards, _headers(storage, layout.shards), strict=True):
        twice = [name for name in found if name in tensors]
        if twice:
            raise CheckpointError(
                f"tensor {shown(twice[0], 200)}{_and_more(len(twice))} in two shards",
                where=storage.where(),
                expected="one shard that holds it",
                found=f"{tensors[twice[0]].shard} and {shard}",
                hint="one of the files is left over from another version of the model: download the checkpoint afresh",
            )
        tensors.update(found)
    _check_index(storage, layout, tensors)
    return tensors


def _headers(storage: Storage, shards: tuple[str, ...]) -> Iterator[dict[str, TensorInfo]]:
    """The tensors of each shard, in order; several at a time where that saves waiting."""

    def read(shard: str) -> dict[str, TensorInfo]:
        with storage.open(shard) as file:
            return read_header(file, where=storage.where(shard), shard=shard)

    if storage.concurrency == 1:
        yield from map(read, shards)
        return
    from concurrent.futures import ThreadPoolExecutor  # not needed for local files, and slow to import

    with ThreadPoolExecutor(storage.concurrency) as pool:
        yield from pool.map(read, shards)


def _check_index(storage: Storage, layout: Layout, tensors: dict[str, TensorInfo]) -> None:
    if layout.index is None or layout.index_name is None:
        return
    misplaced = [name for name, shard in layout.index.items() if name not in tensors or tensors[name].shard != shard]
    if not misplaced:
        return
    name = misplaced[0]
    raise CheckpointError(
        f"places tensor {shown(name, 200)}{_and_more(len(misplaced))} where it is not",
        where=storage.where(layout.index_name),
        expected=layout.index[name],
        found=tensors[name].shard if name in tensors else "no shard that holds it",
        hint="index and shards are of different versions: download the checkpoint afresh",
    )


def _and_more(count: int) -> str:
    return f" and {count - 1:,} more" if count > 1 else ""
