"""``core.save``: writes a model in memory as a checkpoint, in the layout that it was loaded from or in another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from core.device import check_process
from core.errors import UsageError
from core.saving.checkpoint import write_checkpoint
from core.saving.destination import check_destination
from core.saving.leftovers import restore
from core.saving.shards import DEFAULT_SHARD_SIZE
from core.saving.target import make_target
from core.saving.writer import ShardWriter
from core.weights import Entry
from core.weights.dtypes import FLOATS
from core.weights.tree import all_arrays, find

if TYPE_CHECKING:
    from core.language_model import LanguageModel


def save(
    lm: LanguageModel,
    directory: str | os.PathLike[str],
    *,
    layout: str | None = None,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    force: bool = False,
) -> None:
    """Writes a model with its config, tokenizer files and chat templates; completely or not at all.

    Floats are converted back to their dtype in the checkpoint: a model stored in bfloat16 that computes in float32 is
    stored in bfloat16 again.

    Args:
        lm: from ``core.load``.
        directory: where to write.
        layout: ``"hf"``, ``"hf-fused"``, ``"mlx"`` or ``"mistral"``; None keeps that of the checkpoint.
        max_shard_size: bytes of tensors in one file at most.
        force: replace a checkpoint that is there.

    Raises:
        UsageError: the architecture does not have that layout; the directory is the source, or inside of it.
        SaveError: the directory exists, the disk is full, or the written data differs when read back.
        WeightsError: the model has parameters that the layout has no place for.
    """
    if lm.origin is None:
        raise UsageError("this model was not loaded from a checkpoint", hint="core.save saves what core.load loads.")
    origin, plan = lm.origin, lm.report.plan
    check_process()
    restore(Path(directory))
    place = check_destination(Path(directory), force=force, source=origin.checkpoint.path)
    entries = {entry.parameter: entry for entry in plan.entries}
    target = make_target(
        lm.model,
        origin.plugin,
        lm.config,
        origin.raw_config,
        origin.checkpoint,
        plan,
        layout=layout,
        stored=lambda parameter, dtype: _stored(entries, parameter, dtype),
        max_shard_size=max_shard_size,
    )

    def fill(writer: ShardWriter) -> None:
        for parameter in all_arrays(lm.model):
            for name, array in target.inverses[parameter].tensors(find(lm.model, parameter)):
                writer.write(name, array)

    write_checkpoint(place, target, origin.checkpoint, fill, force=force)


def _stored(entries: Mapping[str, Entry], parameter: str, dtype: mx.Dtype) -> mx.Dtype:
    """The dtype in the file. Floats get that of the source's file; integers, and parameters that were in no file, keep
    theirs."""
    entry = entries.get(parameter)
    if entry is None or dtype not in FLOATS.values():
        return dtype
    return FLOATS.get(entry.storage, dtype)
