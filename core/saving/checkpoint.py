"""Writes a planned checkpoint with weights, config, index, companion files and card; completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from core.checkpoint import Checkpoint
from core.errors import refusals
from core.saving.card import model_card
from core.saving.companions import CARD, companions, copy_companions, left_behind
from core.saving.destination import check_space, new_directory
from core.saving.shards import index_name, index_of
from core.saving.target import Target
from core.saving.writer import ShardWriter


def files_of(target: Target, source: Checkpoint) -> list[str]:
    """Names of all files that ``write_checkpoint`` writes."""
    index = [index_name(target.stem)] if len(target.shards) > 1 else []
    return [*(shard.name for shard in target.shards), *index, target.config_name, *companions(source), CARD]


def write_checkpoint(
    place: Path,
    target: Target,
    source: Checkpoint,
    fill: Callable[[ShardWriter], None],
    *,
    force: bool,
    left: Sequence[str] | None = None,
) -> None:
    """Writes everything.

    Args:
        place: from ``check_destination``.
        target: what to write.
        source: a local checkpoint, whose companion files are copied.
        fill: gives the writer all tensors, in the planned order.
        force: replace a checkpoint that is at the place by then.
        left: files of the source that are neither read nor copied; None looks for them among those that are local.

    Raises:
        SaveError: the disk is full, the system refuses, the written data differs when read back, or something has
            appeared at the place.
    """
    companions(source)  # raises its error before the weights are written
    check_space(place, target.nbytes)
    with new_directory(place, force=force) as directory:
        with ShardWriter(directory, target.shards) as writer:
            fill(writer)
            # Write these before the weights are checked: the check opens the directory as a checkpoint.
            index = index_of(target.shards, target.parameters)
            if index is not None:
                _write_json(directory / index_name(target.stem), index)
            _write_json(directory / target.config_name, target.config)
            writer.finish()
        copy_companions(source, directory)
        _write_text(directory / CARD, model_card(target, source, left_behind(source) if left is None else left))


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    _write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    with refusals(path):
        path.write_text(text, encoding="utf-8")
