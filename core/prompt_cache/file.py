"""Saves a cache with its ids to a safetensors file, and loads it in another process for the same model.

The file appears under its name when it is complete. Reading checks the header, the description, every tensor's shape
against the model, and a checksum of the data.
"""

from __future__ import annotations

import fcntl
import json
import operator
import os
import uuid
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint.bounded_json import parse_object
from core.checkpoint.header import TensorInfo, read_header
from core.device import check_process
from core.errors import CacheError, CheckpointError, refusals
from core.nn import Cache
from core.prompt_cache.fingerprint import differing, fingerprint
from core.prompt_cache.layout import IDS, Saved, check_tensors, name_of, names_of, position
from core.prompt_cache.snapshot import snapshot
from core.weights.dtypes import SPELLINGS

_DESCRIPTION, _CHECKSUM = "core.cache", "crc32"  # keys of the header's metadata
_ALIGNMENT = 8
_Entry = tuple[str, str, tuple[int, ...]]  # a tensor's name, dtype and shape


def save_cache(path: str | os.PathLike[str], cache: Cache, model: Any, ids: Sequence[int]) -> None:
    """Writes a prompt's cache, without free slots. A file of this name is replaced.

    Args:
        path: the file.
        cache: of one sequence, made by this model.
        model: a ``LanguageModel``, or its module tree alone (the file is then not tied to a tokenizer).
        ids: the tokens that the cache holds, in order; any further ids are not saved.

    Raises:
        CacheError: an empty cache, one of another model, or fewer ids than tokens.
        SaveError: the system refuses. An earlier file of this name is then unchanged.
    """
    check_process()
    place = Path(path).expanduser()
    if "\0" in str(place):
        raise CacheError("is not a file name: it holds a NUL", where=place)
    kept = snapshot(cache)
    if not 0 < kept.length <= len(ids):
        raise CacheError("a saved cache needs its tokens' ids", expected=f"{kept.length}, and some", found=len(ids))
    if cache.model is not _empty(model).model:
        raise CacheError("this cache was made by another model", hint="Save it with the model that made it.")
    tensors = {IDS: mx.array(_whole(ids[: kept.length]), dtype=mx.uint32)}
    for names, block in zip(names_of(kept), kept.blocks, strict=True):
        tensors.update(zip(names, block.arrays(), strict=False))
    data = {name: memoryview(_bytes(array)) for name, array in tensors.items()}  # type: ignore[arg-type]
    bases = {name_of(reach): span.base[0] for reach, span in kept.spans.items()}
    text = Saved(fingerprint(model), kept.settings, kept.length, bases).to_json()
    entries = [(name, SPELLINGS[array.dtype], array.shape) for name, array in tensors.items()]
    metadata = {_DESCRIPTION: text, _CHECKSUM: _checksum(text, entries, data.values())}
    with refusals(place):
        _write(place, [_header(entries, metadata, data.values()), *data.values()])


def load_cache(path: str | os.PathLike[str], model: Any) -> tuple[Cache, list[int]]:
    """Reads a file of ``save_cache``. Generation continues from it exactly as from the saved cache.

    Args:
        path: the file.
        model: a ``LanguageModel``, or its module tree alone (the tokenizer is then not compared).

    Returns:
        The cache, with the settings it was saved with, and the ids of the tokens it holds.

    Raises:
        CacheError: no such file, a damaged one, or one of another model or tokenizer; the message says which.
    """
    check_process()
    where = os.fspath(Path(path).expanduser())
    try:
        with FileIO(where) as file:
            text, checksum, tensors = _read_header(_File(file), where)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        problem = (isinstance(error, OSError) and error.strerror) or str(error)
        raise CacheError(f"cannot be read: {problem}", where=where) from error
    except CheckpointError as error:
        problem = f"is not a saved cache, or is damaged: {error.problem}"
        raise CacheError(
            problem, where=where, expected=error.expected, found=error.found, hint="Save it again."
        ) from error
    saved = Saved.from_json(text, where)
    if parts := differing(saved.fingerprint, fingerprint(model)):
        raise CacheError(
            f"was saved for another model: {' and '.join(parts)} differ",
            where=where,
            hint="Load the model it was saved with, or process the prompt again.",
        )
    cache = _empty(model, **_settings(saved))
    position(cache, saved, where)
    held = check_tensors(cache, tensors, where)
    arrays: Any = mx.load(where, format="safetensors")
    mx.eval(list(arrays.values()))  # the file may be deleted afterwards
    entries = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors.values()]
    data = (memoryview(_bytes(arrays[name])) for name in tensors)  # type: ignore[arg-type]
    if _checksum(text, entries, data) != checksum:
        raise CacheError("is damaged: its data is not what was saved", where=where, hint="Save it again.")
    for names, block in zip(held, cache.blocks, strict=True):
        if names:
            block.replace([arrays[name] for name in names])
    return cache, arrays[IDS].tolist()


class _File:
    """An open file's ranges."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def read(self, start: int, stop: int) -> bytes:
        return os.pread(self._file.fileno(), stop - start, start)


def _read_header(file: _File, where: str) -> tuple[str, str, dict[str, TensorInfo]]:
    """The description, the checksum and the tensors."""
    tensors = read_header(file, where=where, shard=Path(where).name)
    length = int.from_bytes(file.read(0, 8), "little")
    header = parse_object(file.read(8, 8 + length), where=where, error=CheckpointError, part="header")
    metadata: Any = header.get("__metadata__") or {}
    if _DESCRIPTION not in metadata or _CHECKSUM not in metadata:
        raise CheckpointError("its header does not describe one", where=where)
    return metadata[_DESCRIPTION], metadata[_CHECKSUM], tensors


def _empty(model: Any, **settings: Any) -> Cache:
    modules = model if isinstance(model, nn.Module) else model.model
    cache: Cache = modules.make_cache(**settings)
    return cache


def _whole(ids: Sequence[int]) -> list[int]:
    """The ids as integers that fit uint32."""
    try:
        whole = [operator.index(token_id) for token_id in ids]
    except TypeError:
        raise CacheError("a saved cache needs its tokens' ids", expected="integers", found=repr(ids)[:60]) from None
    if not 0 <= min(whole) <= max(whole) < 2**32:
        raise CacheError("these are not token ids", expected="0 to 2**32 - 1", found=repr(ids)[:60])
    return whole


def _settings(saved: Saved) -> dict[str, Any]:
    own = saved.settings
    return {name: getattr(own, name) for name in own.__slots__}


def _bytes(array: mx.array) -> mx.array:
    """As bytes, because Python's buffers have no bfloat16."""
    return mx.contiguous(array).reshape(-1).view(mx.uint8)


def _checksum(text: str, entries: Sequence[_Entry], data: Iterable[memoryview]) -> str:
    """CRC-32 of the description, of the tensors' names, dtypes and shapes, and of their data."""
    value = zlib.crc32(json.dumps([text, entries]).encode())
    for part in data:
        value = zlib.crc32(part, value)
    return f"{value:08x}"


def _header(entries: Sequence[_Entry], metadata: dict[str, str], data: Iterable[memoryview]) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata}
    stop = 0
    for (name, dtype, shape), part in zip(entries, data, strict=True):
        start, stop = stop, stop + part.nbytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write(place: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes the whole file, or nothing. Files that killed runs have left for the same name are removed."""
    _remove_leftovers(place)
    partial = place.with_name(f".{place.name}.partial-{uuid.uuid4().hex[:12]}")
    try:
        with partial.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock shows that this run is still writing
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def _remove_leftovers(place: Path) -> None:
    for path in place.parent.iterdir():
        if path.name.startswith(f".{place.name}.partial-"):
            with suppress(OSError), path.open("rb") as file:  # it is gone already, or being written
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
