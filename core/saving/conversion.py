"""``core.convert``: writes a checkpoint as another one, block by block, so that a model need not fit in memory.

Memory: the largest block as it is read, the same block as it is written, and one tensor.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from core.checkpoint import Checkpoint
from core.device import check_process
from core.loading import Prepared, prepare
from core.saving.checkpoint import files_of, write_checkpoint
from core.saving.companions import left_behind
from core.saving.destination import check_destination, check_space
from core.saving.leftovers import restore
from core.saving.shards import DEFAULT_SHARD_SIZE
from core.saving.target import Target, make_target
from core.saving.writer import ShardWriter
from core.weights import Entry, Plan
from core.weights.dtypes import FLOATS, dtype_from
from core.weights.load import Progress, execute_blocks
from core.weights.recipes import recipe
from core.weights.treatment import Treatment
from core.weights.tree import find
from core.weights.tree import replace as put


@dataclass(frozen=True)
class Conversion:
    """A conversion before its first weight is read.

    Attributes:
        plan: for reading; every parameter becomes what will be written.
        target: what will be written.
        files: names of all files that will be written.
        left: names of files of the source that are neither read nor copied.
        weight_error: the largest error of a weight caused by ``approximate``; None without it, or before converting.
    """

    prepared: Prepared = field(repr=False)
    plan: Plan = field(repr=False)
    target: Target
    place: Path
    files: tuple[str, ...]
    left: tuple[str, ...]
    weight_error: float | None = None


def plan_conversion(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    layout: str | None = None,
    dtype: mx.Dtype | str | None = None,
    quantize: Any = None,
    dequantize: bool = False,
    approximate: bool = False,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    force: bool = False,
    plugin: Any = None,
    strict: bool = False,
    revision: str | None = None,
    format: str | None = None,
    progress: bool = False,
) -> Conversion:
    """Returns what ``convert`` would do; reads headers and changes nothing. Arguments and errors are those of
    ``convert``."""
    floats = dtype_from(dtype)
    options = {"plugin": plugin, "strict": strict, "revision": revision, "format": format, "progress": progress}
    prepared = prepare(source, **options, treatment=_treatment(quantize, dequantize, approximate))
    prepared.plan.check()
    place = check_destination(Path(destination), force=force, source=prepared.checkpoint.path)
    plan = replace(prepared.plan, entries=tuple(_as_stored(entry, floats) for entry in prepared.plan.entries))
    dtypes = {entry.parameter: entry.dtype for entry in plan.entries}
    target = make_target(
        prepared.model,
        prepared.bound,
        prepared.config,
        prepared.raw_config,
        prepared.checkpoint,
        plan,
        layout=layout,
        order=tuple(dtypes),
        stored=lambda parameter, _: dtypes[parameter],
        dtype=floats,
        max_shard_size=max_shard_size,
    )
    checkpoint = prepared.checkpoint
    return Conversion(
        prepared, plan, target, place, tuple(files_of(target, checkpoint)), tuple(left_behind(checkpoint))
    )


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    layout: str | None = None,
    dtype: mx.Dtype | str | None = None,
    quantize: Any = None,
    dequantize: bool = False,
    approximate: bool = False,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    force: bool = False,
    plugin: Any = None,
    strict: bool = False,
    check_finite: bool = True,
    revision: str | None = None,
    format: str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a checkpoint in another layout, dtype or quantization; completely or not at all.

    Args:
        source: directory, hub repository ``org/name`` or ``demo:NAME``.
        destination: a directory that does not exist yet. The files are written in a directory beside it first.
        layout: ``"hf"``, ``"hf-fused"``, ``"mlx"`` or ``"mistral"``; None keeps the source's.
        dtype: of all floats, or its name; None keeps each tensor's own.
        quantize, dequantize, approximate, format: as for ``core.load``.
        max_shard_size: bytes of tensors in one file at most.
        force: replace a checkpoint that is there.
        check_finite: refuse NaN and infinity, also where a number overflows in ``dtype``.
        progress: called with the bytes converted so far and the total.

    Raises:
        UsageError: the options contradict each other, source and destination are the same place, or this process was
            forked from one that has used a model.
        SaveError: the destination exists, the disk is full, or the written data differs when read back.
        CheckpointError, ConfigError, PluginError, WeightsError: as for ``core.load``.
    """
    check_process()
    restore(Path(destination))
    conversion = plan_conversion(
        source,
        destination,
        layout=layout,
        dtype=dtype,
        quantize=quantize,
        dequantize=dequantize,
        approximate=approximate,
        max_shard_size=max_shard_size,
        force=force,
        plugin=plugin,
        strict=strict,
        revision=revision,
        format=format,
        progress=progress is not None,
    )
    check_space(conversion.place, conversion.target.nbytes)  # before a download
    checkpoint = conversion.prepared.checkpoint.fetch_weights()

    losses: list[float] = []

    def fill(writer: ShardWriter) -> None:
        _stream(conversion, checkpoint, writer, check_finite, progress, losses)

    write_checkpoint(conversion.place, conversion.target, checkpoint, fill, force=force, left=conversion.left)
    return replace(conversion, weight_error=max(losses, default=None))


def _stream(
    conversion: Conversion,
    checkpoint: Checkpoint,
    writer: ShardWriter,
    check_finite: bool,
    progress: Progress | None,
    losses: list[float],
) -> None:
    model, inverses = conversion.prepared.model, conversion.target.inverses
    gone = mx.zeros((0,))
    blocks = execute_blocks(
        conversion.plan, model, checkpoint, check_finite=check_finite, progress=progress, losses=losses
    )
    for entries in blocks:
        for entry in entries:
            tensors = inverses[entry.parameter].tensors(find(model, entry.parameter))
            put(model, entry.parameter, gone)  # frees a written parameter, and with the last one its block
            for name, array in tensors:
                writer.write(name, array)
            del tensors, name, array
        mx.clear_cache()


def _as_stored(entry: Entry, dtype: mx.Dtype | None) -> Entry:
    """The entry with the file's dtype in memory too, so that nothing is converted and no block needs twice its size."""
    if entry.dtype not in FLOATS.values():
        return entry
    return replace(entry, dtype=dtype or FLOATS.get(entry.storage, entry.dtype))


def _treatment(quantize: Any, dequantize: bool, approximate: bool) -> Treatment:
    """What the conversion does to the quantization of its source."""
    return Treatment(None if quantize is None else recipe(quantize), dequantize, approximate)
