"""The plan of a load: which tensors fill each parameter, and how; and everything that does not fit.

After a plan that is ``ok``, no name, shape or dtype can be wrong while it is executed. ``corelm inspect`` prints the
same plan that a load executes.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from core.errors import WeightsError
from core.nn import CacheSpec
from core.weights.dtypes import FLOATS, PACKED, spelling
from core.weights.nodes import Node, leaves
from core.weights.quantization import Quantization
from core.weights.summary import summarise


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter: its sources, and its dtype and shape.

    Attributes:
        parameter: path in the model.
        source: an operation on tensor names.
        shape: of the parameter.
        storage: dtype in the file, as safetensors spells it; if computed, that in a file of MLX's format.
        dtype: dtype in memory.
        quantization: settings, for the tensors of a quantized matrix.
    """

    parameter: str
    source: Node
    shape: tuple[int, ...]
    storage: str
    dtype: mx.Dtype
    quantization: Quantization | None

    @property
    def tensors(self) -> list[str]:
        """Names of the checkpoint tensors that fill the parameter, in order."""
        return leaves(self.source)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * self.dtype.size


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor that is present but does not fit. Expected and found are shapes or dtypes as text."""

    tensor: str
    shard: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.tensor} in {self.shard} (expected {self.expected}, found {self.found})"


@dataclass(frozen=True)
class Plan:
    """What a load would do. Made by ``core.plan``; executed by ``core.load``.

    Attributes:
        source, model_type, plugin, layout: what is loaded, with which plugin, in which layout of tensors.
        entries: every parameter that the checkpoint fills, in the model's order.
        missing: tensor → the parameter that needs it.
        unexpected: tensors that the map does not use.
        mismatched: tensors with a wrong shape or dtype.
        ignored: tensors left unread on purpose → why.
        cache_specs: the kind of cache of each block.
        compute_dtype: dtype of the activations.
        unread_keys: config keys that were not read.
        notes: what else a user should know, one sentence each.
    """

    source: str
    model_type: str
    plugin: str
    layout: str
    entries: tuple[Entry, ...]
    missing: Mapping[str, str]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    ignored: Mapping[str, str]
    cache_specs: tuple[CacheSpec, ...]
    compute_dtype: mx.Dtype
    unread_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every parameter is filled, every tensor used, and all of them fit."""
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def bytes(self) -> int:
        """Bytes of the parameters in memory."""
        return sum(entry.nbytes for entry in self.entries)

    @property
    def parameters(self) -> int:
        """Number of weights, counting the elements of quantized matrices and not their scales."""
        total = 0
        for entry in self.entries:
            size = math.prod(entry.shape)
            if entry.quantization is None:
                total += size
            elif entry.storage == PACKED:
                total += size * 32 // entry.quantization.bits
        return total

    @property
    def precision(self) -> str:
        """For reports: the dtype of activations, and the dtype of most matrices in memory where it differs."""
        sizes: dict[mx.Dtype, int] = {}
        for entry in self.entries:
            if entry.storage in FLOATS:
                sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
        kept = max(sizes, key=lambda dtype: sizes[dtype], default=self.compute_dtype)
        computes = spelling(self.compute_dtype)
        return computes if kept == self.compute_dtype else f"{computes}, with weights in {spelling(kept)}"

    def kv_bytes(self, tokens: int, batch: int = 1) -> int:
        """Bytes of the caches of ``batch`` sequences of ``tokens`` tokens."""
        return batch * sum(spec.bytes_at(tokens, self.compute_dtype) for spec in self.cache_specs)

    def check(self) -> None:
        """Refuses a plan that is not ``ok``.

        Raises:
            WeightsError: one error that names the tensors concerned, grouped.
        """
        if self.ok:
            return
        problems = []
        if self.missing:
            problems.append(f"missing {summarise(self.missing)}")
        if self.mismatched:
            problems.append(f"does not fit: {_grouped(self.mismatched)}")
        if self.unexpected:
            problems.append(f"unexpected {summarise(self.unexpected)}")
        command = f"corelm inspect {shlex.quote(self.source)} --keys"
        hint = f"Config and weights may belong to different models. {command} shows all."
        if set(self.missing.values()) == {"lm_head.weight"} and len(problems) == 1:
            hint = 'If the head shares the embedding\'s matrix, config.json must say "tie_word_embeddings": true.'
        if len(problems) == 1 and self.unexpected and all("lm_head" in name.split(".") for name in self.unexpected):
            hint = 'If the head has a matrix of its own, config.json must say "tie_word_embeddings": false.'
        raise WeightsError("the tensors do not fit the config: " + "\n  ".join(problems), where=self.source, hint=hint)


def _grouped(mismatched: tuple[Mismatch, ...], limit: int = 3) -> str:
    """Groups mismatches of one kind, so that the same fault in 32 layers is one line."""
    kinds: dict[tuple[str, str], list[Mismatch]] = {}
    for one in mismatched:
        kinds.setdefault((one.expected, one.found), []).append(one)
    shown = []
    for (expected, found), group in list(kinds.items())[:limit]:
        shards = sorted({one.shard for one in group})
        more = f" and {len(shards) - 1} more files" if len(shards) > 1 else ""
        names = summarise(one.tensor for one in group)
        shown.append(f"{names} in {shards[0]}{more} (expected {expected}, found {found})")
    if len(kinds) > limit:
        shown.append(f"and {len(kinds) - limit} more kinds")
    return "; ".join(shown)
