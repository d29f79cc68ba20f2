"""Finds which files of a checkpoint hold the model, from its index or from the names of its files.

It follows the naming conventions of transformers, mlx-lm and Mistral's native format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, repeat
from types import MappingProxyType
from typing import NoReturn

from core.checkpoint.bounded_json import parse_object, shown
from core.checkpoint.storage import Storage
from core.errors import CheckpointError

HF = "hf"
MISTRAL = "mistral"

MAX_INDEX = 100_000_000
"""Bytes of an index; the largest public ones have about 20 million."""

GGUF_HINT = (
    "GGUF is llama.cpp's format, which is not read; pass the model that it was made from, in safetensors format "
    "(on the hub, a GGUF repository's page names it as its base model)"
)

ADAPTER_HINT = (
    "adapters are not read; pass the base model that it was trained on, or merge the two with the tool that trained it "
    "(PEFT: merge_and_unload and save_pretrained; mlx-lm: mlx_lm.fuse) and pass the result"
)

_STEMS = {HF: "model", MISTRAL: "consolidated"}
_SUFFIX = ".safetensors"
_SHOWN = 5
_SET = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{1,9})-of-(?P<total>0{0,8}[1-9][0-9]{0,8})\.safetensors")
_ADAPTERS = re.compile(r"adapters?(_model)?\.safetensors|[0-9]+_adapters\.safetensors")
_FOREIGN = (
    (re.compile(r".*\.gguf"), "GGUF", GGUF_HINT),
    (
        re.compile(r"consolidated.*\.(pth|pt)"),
        "PyTorch pickles",
        "convert them to safetensors: pickles can execute code",
    ),
    (re.compile(r".*\.(bin|pt|pth|ckpt)"), "PyTorch pickles", "convert them to safetensors: pickles can execute code"),
    (re.compile(r".*\.(npz|npy)"), "NumPy archives", "convert them to safetensors with the tool that wrote them"),
    (re.compile(r".*\.(h5|msgpack|onnx)"), "weights of another framework", "convert them to safetensors"),
    (_ADAPTERS, "an adapter, not a model", ADAPTER_HINT),
    (
        re.compile(r"consolidated.*\.safetensors"),
        "Mistral's native weights without their params.json",
        "add params.json, or pass the checkpoint in Hugging Face's layout",
    ),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """The files that make up a model.

    Attributes:
        format: ``"hf"`` or ``"mistral"``.
        shards: the safetensors files to read, in order.
        stray: safetensors files that are not part of the checkpoint.
        alternates: safetensors files of the format that is not read.
        index: shard of each tensor, from the index; None without an index.
        index_name: the index's file name; None without an index.
    """

    format: str
    shards: tuple[str, ...]
    stray: tuple[str, ...]
    alternates: tuple[str, ...]
    index: Mapping[str, str] | None
    index_name: str | None


def find_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    """The formats in which a checkpoint holds weights, the default first; empty if none of them can be read."""
    formats = []
    if f"{_STEMS[HF]}{_SUFFIX}.index.json" in names or _candidates(names, HF):
        formats.append(HF)
    if "params.json" in names and _candidates(names, MISTRAL):
        formats.append(MISTRAL)
    return tuple(formats)


def find_layout(storage: Storage, format: str | None = None) -> Layout:
    """The weight files of a checkpoint.

    Args:
        format: `HF`, `MISTRAL`, or None for the first that is found.

    Raises:
        CheckpointError: no weights, weights in a format that is not read, more than one model, an incomplete set, an
            index that is damaged or names absent files.
    """
    formats = find_formats(storage.names)
    if not formats or (format is not None and format not in formats):
        raise _nothing(storage, format, formats)
    format = format or formats[0]
    candidates = _candidates(storage.names, format)
    alternates = tuple(name for other in formats if other != format for name in _candidates(storage.names, other))
    index_name: str | None = f"{_STEMS[format]}{_SUFFIX}.index.json"
    index: Mapping[str, str] | None = None
    if index_name in storage.names:
        index = _read_index(storage, index_name)
        shards = tuple(sorted(set(index.values())))
        _check_present(storage, index_name, shards, candidates)
    else:
        index_name = None
        shards = _by_name(storage, candidates, _STEMS[format])
    kept = {*shards, *alternates}
    stray = tuple(name for name in storage.names if name.endswith(_SUFFIX) and name not in kept)
    return Layout(format, shards, stray, alternates, index, index_name)


def only_gguf(names: tuple[str, ...]) -> tuple[str, ...]:
    """The GGUF files among the names; empty if there is also a safetensors file to read."""
    return () if any(map(_candidates, repeat(names), _STEMS)) else tuple(n for n in names if n.endswith(".gguf"))


def _candidates(names: tuple[str, ...], format: str) -> tuple[str, ...]:
    """The safetensors files that may hold a model in `format`."""
    native = format == MISTRAL
    return tuple(
        name
        for name in names
        if name.endswith(_SUFFIX)
        and not name.startswith(".")  # macOS leaves ._model.safetensors on foreign disks
        and "/" not in name
        and name.startswith(_STEMS[MISTRAL]) == native
        and not _ADAPTERS.fullmatch(name)
    )


def _read_index(storage: Storage, name: str) -> Mapping[str, str]:
    """Shard of each tensor, from ``{"weight_map": {tensor: file}}``. Other keys are ignored."""
    where = storage.where(name)
    data = storage.read(name, MAX_INDEX)
    if data is None:
        raise CheckpointError("is too large for an index", where=where, expected=f"at most {MAX_INDEX:,} bytes")
    index = parse_object(data, where=where, error=CheckpointError, unique_keys=True)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            "has no weight_map",
            where=where,
            expected="an object that gives the shard of each tensor",
            found=", ".join(shown(key) for key in list(index)[:8]) if weight_map is None else shown(weight_map),
            hint="download the index again, or delete it if the directory holds one complete model",
        )
    for tensor, shard in weight_map.items():
        # Only plain names are accepted: an index must not refer to files outside of its checkpoint.
        if not isinstance(shard, str) or not shard.endswith(_SUFFIX) or re.search(r"[/\\\0]", shard):
            raise CheckpointError(
                f"names no safetensors file of this checkpoint for tensor {shown(tensor, 200)}",
                where=where,
                expected="the name of a .safetensors file beside the index",
                found=shown(shard, 200),
            )
    return MappingProxyType(weight_map)


def _check_present(storage: Storage, index_name: str, shards: tuple[str, ...], candidates: tuple[str, ...]) -> None:
    present = set(storage.names)
    missing = [shard for shard in shards if shard not in present]
    if not missing:
        return
    hint = "resume the download, or copy the missing files into the directory"
    if len(missing) == len(shards) and len(candidates) == 1:
        hint += f"; if {candidates[0]} is the whole model, delete the index"
    raise CheckpointError(
        f"names {len(shards):,} shards, of which {len(missing):,} {'is' if len(missing) == 1 else 'are'} absent",
        where=storage.where(index_name),
        found=f"no {_some(missing)}",
        hint=hint,
    )


def _by_name(storage: Storage, candidates: tuple[str, ...], stem: str) -> tuple[str, ...]:
    """The files of the model when there is no index: the usual name, one numbered set, or the only file there is."""
    if f"{stem}{_SUFFIX}" in candidates:
        return (f"{stem}{_SUFFIX}",)
    sets: dict[tuple[str, str], dict[int, str]] = {}
    single = []
    for name in candidates:
        match = _SET.fullmatch(name)
        if match is None:
            single.append(name)
        else:
            sets.setdefault((match["stem"], match["total"]), {})[int(match["number"])] = name
    complete = {key: files for key, files in sets.items() if _is_complete(files, int(key[1]))}
    usual = {key: files for key, files in complete.items() if key[0] == stem} or complete
    if len(usual) == 1:
        (files,) = usual.values()
        return tuple(files[number] for number in sorted(files))
    if not complete and sets:
        _raise_incomplete(storage, *min(sets.items(), key=lambda item: (item[0][0] != stem, item[0])))
    if len(single) == 1 and not sets:
        return (single[0],)
    raise CheckpointError(
        "holds several safetensors files, and no index says which of them are the model",
        where=storage.where(),
        expected=f"{stem}{_SUFFIX}, or {stem}{_SUFFIX}.index.json with the shards it names",
        found=_some(list(candidates)),
        hint="keep one model in a directory, or add its index",
    )


def _is_complete(files: Mapping[int, str], total: int) -> bool:
    first = min(files)
    return first in (0, 1) and len(files) == total and max(files) == first + total - 1


def _raise_incomplete(storage: Storage, key: tuple[str, str], files: Mapping[int, str]) -> NoReturn:
    stem, total = key
    width = len(next(iter(files.values()))) - len(f"{stem}--of-{total}{_SUFFIX}")
    first = 0 if 0 in files else 1
    absent = (number for number in range(first, first + int(total)) if number not in files)
    missing = [f"{stem}-{number:0{width}d}-of-{total}{_SUFFIX}" for number in islice(absent, _SHOWN + 1)]
    count = max(int(total) - len(files), len(missing))
    raise CheckpointError(
        f"holds {len(files):,} of the {int(total):,} files of the set {stem}-*-of-{total}{_SUFFIX}",
        where=storage.where(),
        found=f"no {_some(missing, count)}",
        hint="resume the download, or copy the missing files into the directory",
    )


def _nothing(storage: Storage, format: str | None, formats: tuple[str, ...]) -> CheckpointError:
    """The error when there is no model to read: what is there instead, and what to do."""
    if formats:
        return CheckpointError(
            f"holds no weights in the format {format!r}", where=storage.where(), found=", ".join(map(repr, formats))
        )
    for pattern, what, hint in _FOREIGN:
        names = [name for name in storage.names if pattern.fullmatch(name)]
        if names:
            return CheckpointError(
                f"holds no safetensors weights, only {what}", where=storage.where(), found=_some(names), hint=hint
            )
    return CheckpointError(
        "holds no weights",
        where=storage.where(),
        expected="*.safetensors",
        found=_some(list(storage.names)) or "no files",
        hint="pass the directory that holds the model's files, or download them",
    )


def _some(names: list[str], count: int | None = None) -> str:
    """The first few names, and how many more there are."""
    count = len(names) if count is None else count
    text = ", ".join(names[:_SHOWN])
    return text if count <= _SHOWN else f"{text} and {count - _SHOWN:,} more"
