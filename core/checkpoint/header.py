"""Parses the header of a safetensors file: the name, dtype, shape and byte range of each tensor.

Only the length and the header are read, no tensor data.

Format: https://github.com/huggingface/safetensors#format, with the stricter rules of its Rust implementation (tensors
cover the data without holes or overlap). A file is ``uint64 length, length bytes of JSON, data``, little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from core.checkpoint.bounded_json import LFS_HINT, LFS_PREFIX, LFS_PROBLEM, parse_object, shown
from core.errors import CheckpointError

DTYPES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)
"""Bits per element of every dtype of the format, by its spelling in a header (safetensors 0.8)."""

MAX_HEADER = 100_000_000
"""Bytes of header that the format allows."""

MAX_TENSORS = 300_000
"""Tensors in one file. The largest public checkpoints have about 200,000 over all their shards."""

_PREFIX = 8
_UINT64 = 1 << 64
_AGAIN = "the file is damaged or its download was cut short: fetch it again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint, as its header describes it.

    Attributes:
        name: its name in the checkpoint.
        dtype: safetensors' spelling: ``"BF16"``, ``"F32"``, ``"U32"``, ...; a key of `DTYPES`.
        shape: as stored; ``()`` for a scalar.
        shard: name of the file that holds it.
        start, stop: byte offsets in that file (from its first byte, header included) of its data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.stop - self.start


class Ranges(Protocol):
    """A file whose byte ranges can be read: on disk, over HTTP, or in a test's memory."""

    @property
    def size(self) -> int:
        """Bytes in the whole file."""

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`; fewer only if the file ends before `stop`."""


def read_header(file: Ranges, *, where: str, shard: str) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, in the order of their data.

    Args:
        file: the file; two ranges of it are read, the 8 bytes of the length and the header.
        where: how an error names the file.
        shard: the file's name, for `TensorInfo.shard`.

    Raises:
        CheckpointError: the file breaks the format; names the file and the tensor, what was expected and found.
    """
    size = file.size
    if size == 0:
        raise CheckpointError(
            "is an empty file", where=where, expected="a safetensors file", found="0 bytes", hint=_AGAIN
        )
    prefix = file.read(0, _PREFIX)
    if prefix == LFS_PREFIX[:_PREFIX] and file.read(0, len(LFS_PREFIX)) == LFS_PREFIX:
        raise CheckpointError(LFS_PROBLEM, where=where, hint=LFS_HINT)
    if len(prefix) < _PREFIX or size < _PREFIX:
        raise CheckpointError(
            "is too short for a safetensors file",
            where=where,
            expected="at least 8 bytes",
            found=f"{min(size, len(prefix)):,}",
            hint=_AGAIN,
        )
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            "is not a safetensors file: its first 8 bytes are not a header length",
            where=where,
            expected=f"a header of at most {MAX_HEADER:,} bytes",
            found=f"{length:,} (the file starts with {prefix!r})",
            hint="the file is of another kind or damaged: fetch it again",
        )
    if length > size - _PREFIX:
        raise CheckpointError(
            "is cut off inside its header",
            where=where,
            expected=f"at least {length + _PREFIX:,} bytes",
            found=f"{size:,}",
            hint=_AGAIN,
        )
    header = file.read(_PREFIX, _PREFIX + length)
    if len(header) < length:
        raise CheckpointError(
            "ended while its header was read",
            where=where,
            expected=f"{length:,} bytes",
            found=f"{len(header):,}",
            hint=_AGAIN,
        )
    return parse_header(header, size=size, where=where, shard=shard)


def parse_header(header: bytes, *, size: int, where: str, shard: str) -> dict[str, TensorInfo]:
    """The tensors that a header describes, in the order of their data, checked against the file's size in bytes.

    Raises:
        CheckpointError: as `read_header`.
    """
    if not header.startswith(b"{"):
        if header.startswith(LFS_PREFIX):
            raise CheckpointError(LFS_PROBLEM, where=where, hint=LFS_HINT)
        raise CheckpointError(
            "is not a safetensors file: its header is not a JSON object",
            where=where,
            expected="a header that starts with {",
            found=repr(bytes(header[:16])),
            hint=_AGAIN,
        )
    entries = parse_object(header, where=where, error=CheckpointError, part="header", unique_keys=True)
    _check_metadata(entries.pop("__metadata__", None), where)
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(
            "holds more tensors than any model file",
            where=where,
            expected=f"at most {MAX_TENSORS:,}",
            found=f"{len(entries):,}",
        )
    data = _PREFIX + len(header)
    tensors = [_tensor(name, entry, data, where, shard) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    _check_cover(tensors, data, size, where)
    return {tensor.name: tensor for tensor in tensors}


def _check_metadata(metadata: object, where: str) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise CheckpointError(
            "has a bad __metadata__", where=where, expected="an object of strings", found=shown(metadata)
        )
    for key, value in metadata.items():
        if not isinstance(value, str):
            problem = f"has a bad __metadata__ at {shown(key)}"
            raise CheckpointError(problem, where=where, expected="a string", found=shown(value))


def _tensor(name: str, entry: object, data: int, where: str, shard: str) -> TensorInfo:
    """Parses and checks one entry of a header."""

    def wrong(what: str, *, expected: object, found: object, hint: str = _AGAIN) -> CheckpointError:
        return CheckpointError(
            f"tensor {shown(name, 200)}: {what}", where=where, expected=expected, found=found, hint=hint
        )

    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise wrong("its name is not Unicode text", expected="UTF-8", found="a lone surrogate") from None
    if not isinstance(entry, dict):
        raise wrong("its entry is not an object", expected="dtype, shape and data_offsets", found=shown(entry))
    for key in ("dtype", "shape", "data_offsets"):
        if key not in entry:
            raise wrong(
                f"its entry has no {key}", expected="dtype, shape and data_offsets", found=", ".join(map(shown, entry))
            )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        hint = "a newer version of the format may define it: upgrade, or convert the checkpoint to a known dtype"
        raise wrong("unknown dtype", expected=f"one of {', '.join(DTYPES)}", found=shown(dtype), hint=hint)
    if not isinstance(shape, list) or not all(map(_is_uint64, shape)):
        raise wrong("bad shape", expected="a list of sizes from 0 to 2**64 - 1", found=_shown_list(shape))
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_uint64, offsets)):
        raise wrong("bad data_offsets", expected="[start, stop], each from 0 to 2**64 - 1", found=_shown_list(offsets))
    start, stop = offsets
    if start > stop:
        raise wrong("its data ends before it starts", expected="start <= stop", found=_shown_list(offsets))
    elements = 1
    for size in shape:
        elements *= size
        if elements >= _UINT64:
            raise wrong(
                "its number of elements overflows 64 bits", expected="less than 2**64", found=_shown_list(shape)
            )
    if elements * bits >= _UINT64:
        raise wrong("its number of bits overflows 64 bits", expected="less than 2**64", found=_shown_list(shape))
    if elements * bits % 8:
        raise wrong(
            f"{elements:,} elements of {dtype} do not fill whole bytes",
            expected="a multiple of 8 bits",
            found=elements * bits,
        )
    if elements * bits // 8 != stop - start:
        raise wrong(
            f"its byte range does not fit {dtype} {_shown_list(shape)}",
            expected=f"{elements * bits // 8:,} bytes",
            found=f"{stop - start:,}",
        )
    return TensorInfo(name, dtype, tuple(shape), shard, data + start, data + stop)


def _check_cover(tensors: list[TensorInfo], data: int, size: int, where: str) -> None:
    """Raises unless the tensors, sorted by offset, fill the file from the end of the header to its last byte."""
    stop = data
    before: TensorInfo | None = None
    for tensor in tensors:
        if tensor.start != stop:
            what = "overlaps" if tensor.start < stop else "leaves a hole after"
            neighbour = f"tensor {shown(before.name, 200)}" if before else "the header"
            raise CheckpointError(
                f"tensor {shown(tensor.name, 200)} {what} {neighbour}",
                where=where,
                expected=f"data_offsets from {stop - data:,}",
                found=f"{tensor.start - data:,}",
                hint=_AGAIN,
            )
        stop = tensor.stop
        before = tensor
    if stop > size:
        lost = next(tensor for tensor in tensors if tensor.stop > size)
        count = sum(tensor.stop > size for tensor in tensors)
        others = f" and {count - 1:,} more" if count > 1 else ""
        raise CheckpointError(
            f"is truncated: tensor {shown(lost.name, 200)}{others} reach past its end",
            where=where,
            expected=f"{stop:,} bytes",
            found=f"{size:,}",
            hint="the download or copy was cut short: run it again",
        )
    if stop < size:
        raise CheckpointError(
            "has bytes at its end that no tensor owns",
            where=where,
            expected=f"{stop:,} bytes",
            found=f"{size:,}",
            hint=_AGAIN,
        )


def _is_uint64(value: object) -> bool:
    return type(value) is int and 0 <= value < _UINT64  # type(): a bool is an int to isinstance


def _shown_list(value: object) -> str:
    """A short list of scalars in full; anything else as `shown` prints it."""
    if isinstance(value, list) and len(value) <= 8:
        return f"[{', '.join(shown(item) for item in value)}]"
    return shown(value)
