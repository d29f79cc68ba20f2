"""The content of a cache's file: its tensors by name, and a description of the cache as JSON.

The description is untrusted: every value is checked against the model before it is used.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from core.checkpoint.bounded_json import parse_object, shown
from core.checkpoint.header import DTYPES, TensorInfo
from core.errors import CacheError, UsageError
from core.nn import Cache, CacheSettings, State
from core.nn.span import Reach, Span

VERSION = 1
IDS = "ids"
_FLOATS = ("F32", "BF16", "F16")
_DTYPES = {"words": ("U32",), "float": _FLOATS, "any": tuple(DTYPES)}


@dataclasses.dataclass(frozen=True, slots=True)
class Saved:
    """The description of a saved cache.

    Attributes:
        fingerprint: of the model.
        settings: of the cache.
        length: tokens it holds.
        bases: for each reach, its span's base, in the order of ``reaches``.
    """

    fingerprint: dict[str, Any]
    settings: CacheSettings
    length: int
    bases: dict[str, int]

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> Saved:
        """
        Raises:
            CacheError: written by another version, or no such description.
        """
        values = parse_object(text.encode(), where=where, error=CacheError, part="description")
        if values.pop("version", None) != VERSION:
            raise CacheError("was saved by another version of core", where=where, hint="Save it again.")
        try:
            settings, fingerprint, bases = values["settings"], values["fingerprint"], values["bases"]
            length = values["length"]
            if not (isinstance(settings, dict) and isinstance(fingerprint, dict) and isinstance(bases, dict)):
                raise TypeError("settings, fingerprint and bases are objects")
            if not all(type(value) is int and value >= 0 for value in (length, *bases.values())) or not length:
                raise TypeError("length and bases are counts")
            if not all(value is None or type(value) is int for value in settings.values()):
                raise TypeError("settings are integers")
            return cls(fingerprint, CacheSettings(**settings), length, bases)  # type: ignore[arg-type]
        except (KeyError, TypeError, UsageError) as error:
            raise CacheError(f"has a damaged description: {error}", where=where, hint="Save it again.") from None


def name_of(reach: Reach) -> str:
    """The key of a reach in ``Saved.bases``."""
    return "full" if reach is None else str(reach) if isinstance(reach, int) else f"{reach.kept}+{reach.tokens}"


def names_of(cache: Cache) -> list[list[str]]:
    """The tensors' names, block by block."""
    return [
        [f"blocks.{index}.{number}" for number in range(len(block.layout(0)))]
        for index, block in enumerate(cache.blocks)
    ]


def position(cache: Cache, saved: Saved, where: str) -> None:
    """Sets the length and spans of an empty cache of one row to those of a saved one; its arrays are to be set next.

    Raises:
        CacheError: the file's spans are not those of this model, or its bases are impossible.
    """
    if set(saved.bases) != {name_of(reach) for reach in cache.spans}:
        raise CacheError("keeps other tokens than this model's blocks do", where=where, found=", ".join(saved.bases))
    cache.resize([saved.length])
    for reach, span in cache.spans.items():
        base = saved.bases[name_of(reach)]
        _check_base(span, base, saved.length, where)
        span.base, span.capacity = [base], saved.length - base


def _check_base(span: Span, base: int, length: int, where: str) -> None:
    """Refuses a base that a ``Span`` cannot have reached, or that would hide keys which the next query must see."""
    possible = Span(span.reach, 1)
    possible.base = [base]
    if base and (span.reach is None or base + span.front > length or not possible.can_rewind(0, length)):
        raise CacheError("holds fewer tokens than its length asks for", where=where, expected=length, found=base)


def check_tensors(cache: Cache, found: Mapping[str, TensorInfo], where: str) -> list[list[str]]:
    """The names of each block's tensors, none for a block that has written none.

    Args:
        cache: positioned.
        found: the file's tensors by name.

    Raises:
        CacheError: a tensor is missing, or of another shape or dtype than this model's.
    """
    expected: dict[str, tuple[str, tuple[int, ...]]] = {IDS: ("words", (cache.length,))}
    held = []
    for block, names in zip(cache.blocks, names_of(cache), strict=True):
        held.append(names if any(name in found for name in names) else [])
        slots = 0 if isinstance(block, State) else cache.capacity(block.reach)
        expected.update(zip(held[-1], block.layout(slots), strict=False))
    for name, (kind, shape) in expected.items():
        tensor = found.get(name)
        if tensor is None or tensor.dtype not in _DTYPES[kind] or tensor.shape != shape:
            raise CacheError(
                f"tensor {name!r} does not fit this model",
                where=where,
                expected=f"{' or '.join(_DTYPES[kind])} {list(shape)}",
                found=None if tensor is None else f"{tensor.dtype} {list(tensor.shape)}",
            )
    if extra := set(found) - set(expected):
        raise CacheError(f"holds a tensor of no block of this model: {shown(min(extra))}", where=where)
    return held
