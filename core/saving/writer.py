"""Writes tensors into shards, one at a time and in the planned order, and verifies the files afterwards.

Memory: one tensor. Each shard is read back and compared by checksum while the next one is written.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import mlx.core as mx

from core.checkpoint import open_checkpoint
from core.errors import SaveError, refusals
from core.saving.format_check import check_with_safetensors
from core.saving.shards import Shard
from core.saving.table import Tensor
from core.weights.dtypes import SPELLINGS

_CHUNK = 8 << 20  # bytes read back at a time


class ShardWriter:
    """Writes the files of ``shards`` into ``directory``. It is a context manager, so that a failure closes files and
    threads."""

    def __init__(self, directory: Path, shards: Sequence[Shard]) -> None:
        self._directory = directory
        self._shards = shards
        self._expected: Iterator[tuple[int, Tensor]] = (
            (number, tensor) for number, shard in enumerate(shards) for tensor in shard.tensors
        )
        self._number = -1
        self._file: BinaryIO | None = None
        self._checksum = 0
        self._hashing = ThreadPoolExecutor(1, "checksum")
        self._verifying = ThreadPoolExecutor(1, "verify")
        self._verified: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hashing.shutdown(cancel_futures=True)
        self._verifying.shutdown(cancel_futures=True)
        if self._file is not None:
            self._file.close()

    def write(self, name: str, array: mx.array) -> None:
        """Writes the next tensor, cast to the planned dtype.

        Raises:
            SaveError: the system refuses, for instance because the disk is full.
        """
        number, tensor = next(self._expected)
        if (name, tuple(array.shape)) != (tensor.name, tensor.shape):
            raise SaveError("tensors come in another order than planned", expected=tensor, found=(name, array.shape))
        while self._number < number:
            self._next_shard()
        if tensor.nbytes:
            # As bytes: Python's buffers have no bfloat16, and a part of a larger array is not contiguous yet.
            data = memoryview(array.astype(tensor.dtype).reshape(-1).view(mx.uint8))  # type: ignore[arg-type]
            self._put(data)

    def finish(self) -> None:
        """Waits until every shard has been read back, and checks their headers against the plan.

        Raises:
            SaveError: a tensor is missing, or the files differ from what was written.
        """
        left = next(self._expected, None)
        if left is not None:
            raise SaveError(f"tensor {left[1].name!r} was planned, and has not been written", where=self._directory)
        while self._number < len(self._shards) - 1:
            self._next_shard()
        self._close()
        for verified in self._verified:
            verified.result()
        self._check_headers()

    def _next_shard(self) -> None:
        self._close()
        self._number += 1
        shard = self._shards[self._number]
        with refusals(self._directory / shard.name):
            self._file = (self._directory / shard.name).open("xb", buffering=0)
        self._checksum = 0
        self._put(memoryview(shard.header))

    def _put(self, data: memoryview) -> None:
        assert self._file is not None
        path = self._directory / self._shards[self._number].name
        hashed = self._hashing.submit(zlib.crc32, data, self._checksum)  # during the write: both release Python's lock
        with refusals(path):
            rest = data
            while rest:
                rest = rest[self._file.write(rest) :]
        self._checksum = hashed.result()

    def _close(self) -> None:
        if self._file is None:
            return
        shard = self._shards[self._number]
        file, self._file = self._file, None
        for verified in self._verified:
            if verified.done():
                verified.result()  # raises at once if the disk has failed
        self._verified.append(self._verifying.submit(_verify, file, self._directory, shard, self._checksum))

    def _check_headers(self) -> None:
        found = open_checkpoint(self._directory).tensors
        for shard in self._shards:
            for tensor in shard.tensors:
                info = found.get(tensor.name)
                expected = (shard.name, SPELLINGS[tensor.dtype], tensor.shape)
                if info is None or (info.shard, info.dtype, info.shape) != expected:
                    where = self._directory / shard.name
                    raise SaveError(
                        f"tensor {tensor.name!r} differs when read back", where=where, expected=expected, found=info
                    )
        if len(found) != sum(len(shard.tensors) for shard in self._shards):
            raise SaveError("holds other tensors than were written", where=self._directory)
        for shard in self._shards:
            check_with_safetensors(self._directory / shard.name, shard)


def _verify(file: BinaryIO, directory: Path, shard: Shard, checksum: int) -> None:
    path = directory / shard.name
    with refusals(path):
        with file:
            os.fsync(file.fileno())
        found, size = 0, 0
        with path.open("rb", buffering=0) as written:
            while chunk := written.read(_CHUNK):
                found = zlib.crc32(chunk, found)
                size += len(chunk)
    if (found, size) != (checksum, shard.nbytes):
        raise SaveError(
            "does not read back as it was written",
            where=path,
            expected=f"{shard.nbytes:,} bytes with checksum {checksum:08x}",
            found=f"{size:,} bytes with checksum {found:08x}",
            hint="The disk or the memory of this machine is damaged.",
        )
