"""What an inspection finds: the object that ``corelm inspect SOURCE --json`` prints.

The fields below are that JSON, name for name; a tuple is a list, and what could not be found out is null. Later
versions add fields, and rename or remove none as long as ``schema`` is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from core.blas import Status

SCHEMA = 1


@dataclass(frozen=True)
class Inspection:
    """A checkpoint, who loads it, and what would happen.

    Attributes:
        schema: version of this format.
        source: what was asked for, as given.
        ok: there are no errors; the exit code is 0.
        errors: what a load would be refused for, and what is damaged.
        checkpoint: null where it cannot be opened.
        plugin: null where none loads this type.
        plan, memory: null where an error came before.
        blas: what multiplies matrices on a CPU of Linux, as ``core.blas.Status`` describes it; else null.
        keys: every tensor, with ``--keys``; else null.
    """

    schema: int
    source: str
    ok: bool
    errors: tuple[Problem, ...]
    checkpoint: CheckpointFacts | None = None
    plugin: PluginFacts | None = None
    plan: PlanFacts | None = None
    memory: MemoryFacts | None = None
    blas: Status | None = None
    keys: tuple[Key, ...] | None = None


@dataclass(frozen=True)
class Problem:
    """One error: the name of its class in ``core.errors``, and its text."""

    kind: str
    message: str


@dataclass(frozen=True)
class CheckpointFacts:
    """What is there, from names, headers and small files.

    Attributes:
        path: local directory; null for a hub repository that is not downloaded.
        revision: commit of a hub repository.
        model_type, architectures: of ``config.json``, or what ``params.json`` amounts to.
        format: ``hf`` or ``mistral``: the naming of the files that are read.
        shards: the files that are read; stray: safetensors files that are no part of the model; alternates: those that
            hold it once more, in another format.
        tensors, parameters, bytes: how many, elements (of quantized matrices: before packing, scales not counted;
            null where another tool has packed them), and bytes of data.
        dtypes: storage dtype → tensors and bytes.
        quantization: null where no matrix is quantized.
        tokenizer: there is one that can be read; tokenizer_file: ``tokenizer.json`` or ``tekken.json``.
        chat_template: the file it is in; null without one.
        chat_format: what conversations are written in without a template, by the vocabulary; null where a template
            says, or nothing does, or the repository is not downloaded.
    """

    path: str | None
    revision: str | None
    model_type: str | None
    architectures: tuple[str, ...]
    format: str | None
    shards: tuple[str, ...] | None
    stray: tuple[str, ...]
    alternates: tuple[str, ...]
    tensors: int | None
    parameters: int | None
    bytes: int | None
    dtypes: Mapping[str, DtypeFacts]
    quantization: QuantizationFacts | None
    tokenizer: bool
    tokenizer_file: str | None
    chat_template: str | None
    chat_format: str | None


@dataclass(frozen=True)
class DtypeFacts:
    """Tensors and bytes that are stored in one dtype."""

    tensors: int
    bytes: int


@dataclass(frozen=True)
class QuantizationFacts:
    """A quantized checkpoint.

    Attributes:
        method: ``mlx``, or what the config calls another tool's.
        matrices: every kind of matrix with its settings; a kind that comes in several is there several times.
    """

    method: str
    matrices: tuple[MatrixKind, ...]


@dataclass(frozen=True)
class MatrixKind:
    """Matrices whose names differ only in indices, and whose settings agree.

    Attributes:
        kind: the name with ``*`` for each index; names: with the ranges of the indices; count: how many.
        bits, group_size, mode: MLX's settings; null where they are not quantized.
    """

    kind: str
    names: str
    count: int
    bits: int | None
    group_size: int | None
    mode: str | None


@dataclass(frozen=True)
class PluginFacts:
    """Who loads it.

    Attributes:
        value: the module, as its entry point has it; distribution, version: the package that ships it.
        tier: ``explicit``, ``registered``, ``builtin``, ``installed``, ``bundled`` or ``fallback``.
        file: of the module.
        others: further claims to the type → why they do not serve.
    """

    value: str
    distribution: str | None
    version: str | None
    tier: str
    file: str | None
    others: Mapping[str, str]


@dataclass(frozen=True)
class PlanFacts:
    """What a load would do.

    Attributes:
        layout: the arrangement of tensors that was recognised.
        parameters, bytes: of the loaded model, in memory.
        compute_dtype: of the activations.
        precision: the same in words, with the dtype of most weights where that is another.
        context: positions that the model is made for; window: keys that a query sees, null for all.
        kv_bytes_per_token, kv_bytes_at_context: of one sequence's cache.
        fused: matrices that are made of several tensors.
        missing: tensor → the parameter that needs it; unexpected: tensors that nothing claims; mismatched: those
            that do not fit; ignored: tensor → why it is left unread.
        unread_keys: config keys that nobody reads.
        notes: what else there is to know.
    """

    layout: str
    parameters: int
    bytes: int
    compute_dtype: str
    precision: str
    context: int | None
    window: int | None
    kv_bytes_per_token: int
    kv_bytes_at_context: int | None
    fused: tuple[FusedGroup, ...]
    missing: Mapping[str, str]
    unexpected: tuple[str, ...]
    mismatched: tuple[MismatchFacts, ...]
    ignored: Mapping[str, str]
    unread_keys: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FusedGroup:
    """Parameters of one kind that are made of several tensors: which, in order, how many of each, and how often."""

    parameter: str
    parts: tuple[str, ...]
    stacked: int | None
    count: int


@dataclass(frozen=True)
class MismatchFacts:
    """A tensor that is there but does not fit: shapes or dtypes as text."""

    tensor: str
    shard: str
    expected: str
    found: str


@dataclass(frozen=True)
class MemoryFacts:
    """The plan against the default device: bytes of the weights and of a cache of ``tokens`` tokens.

    ``tight`` loads with a warning, ``too large`` is refused.
    """

    device: str
    tokens: int
    needed: int
    recommended: int | None
    available: int | None
    verdict: Literal["fits", "tight", "too large"]


@dataclass(frozen=True)
class Key:
    """One tensor on its way to its parameter.

    Attributes:
        tensor, stored, shape: as in the file; null dtype and shape for one that is missing.
        operation: ``copy``, ``concat[i/n]``, ``stack[i/n]``, ``permute``, a chain of these (the outermost first), or
            why it is not loaded: ``missing``, ``unexpected``, ``mismatched``, ``ignored``, ``incomplete`` (its
            parameter lacks other tensors), ``unplanned`` (no plugin says).
        parameter, dtype, parameter_shape: what it becomes, or becomes a part of.
    """

    tensor: str
    stored: str | None
    shape: tuple[int, ...] | None
    operation: str
    parameter: str | None
    dtype: str | None
    parameter_shape: tuple[int, ...] | None
