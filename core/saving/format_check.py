"""Checks a written file with the format's own reader, the safetensors package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mlx.core as mx

from core.errors import SaveError
from core.saving.shards import Shard
from core.saving.table import Tensor
from core.weights.dtypes import SPELLINGS

_Found = dict[str, tuple[str, tuple[int, ...]]]  # a tensor's name → its dtype and shape
_ONE_BYTE = Shard("", (Tensor("byte", mx.uint8, (1,)),), "mlx")


def check_with_safetensors(path: Path, shard: Shard) -> None:
    """Reads a file's header with safetensors: its tensors if NumPy is installed, else only whether the header is valid.

    Raises:
        SaveError: safetensors reads other tensors than the plan has, or none.
    """
    if importlib.util.find_spec("numpy") is None:  # safetensors needs it to open a file, whatever the framework
        _check_header(path, shard)
        return
    expected: _Found = {tensor.name: (SPELLINGS[tensor.dtype], tensor.shape) for tensor in shard.tensors}
    found = _tensors(path)
    for name in expected | found:
        if expected.get(name) != found.get(name):
            problem = f"tensor {name!r} is read differently by safetensors"
            raise SaveError(problem, where=path, expected=expected.get(name), found=found.get(name))


def _tensors(path: Path) -> _Found:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except SafetensorError as error:
        raise _refused(path, str(error)) from error


def _check_header(path: Path, shard: Shard) -> None:
    """Gives ``deserialize`` the header without the data: it copies its whole input, and needs no NumPy.

    If its only complaint is that the data is missing, it has accepted the names, dtypes, shapes and offsets.
    """
    with path.open("rb") as file:
        found = _complaint(file.read(len(shard.header)))
    # A correct header shows how this release of safetensors words that complaint.
    expected = _complaint(_ONE_BYTE.header) if shard.nbytes > len(shard.header) else None
    if found != expected:
        raise _refused(path, found or "a file without data")
    size = path.stat().st_size
    if size != shard.nbytes:
        raise SaveError("is of another size", where=path, expected=f"{shard.nbytes:,} bytes", found=f"{size:,} bytes")


def _complaint(data: bytes) -> str | None:
    from safetensors import SafetensorError, deserialize

    try:
        deserialize(data)
    except SafetensorError as error:
        return str(error)
    return None


def _refused(path: Path, found: str) -> SaveError:
    return SaveError("is not read by safetensors", where=path, found=found)
