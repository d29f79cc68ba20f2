"""Opens a checkpoint: from what the user named to the object that everything else works on."""

from __future__ import annotations

import os
from pathlib import Path

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.source import resolve
from core.checkpoint.storage import Directory
from core.errors import HubError


def open_checkpoint(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    download: bool = True,
    progress: bool = False,
    format: str | None = None,
) -> Checkpoint:
    """The checkpoint that `source` names.

    Args:
        source: a directory; ``"demo:NAME"``, a model bundled with the package; or a repository on the Hugging Face hub,
            ``"org/name"`` or ``"org/name@revision"``. Whatever exists on disk or looks like a path is taken as a path.
        revision: branch, tag or commit of a hub repository.
        download: whether a hub repository's weights are downloaded. If not, headers and small files are read over the
            network when they are asked for, and `Checkpoint.path` is None unless the weights are cached already.
        progress: whether a download shows its progress on stderr.
        format: ``"hf"`` or ``"mistral"``, for checkpoints that hold both; None takes the first of these that is there.

    Raises:
        CheckpointError: no such directory, a file, an unreadable directory. That weights are absent or damaged is found
            when `Checkpoint.shards` or `Checkpoint.tensors` are asked for, so that a directory with no more than a
            config or a tokenizer can be opened too.
        HubError: the hub could not be reached, or refused.
        UsageError: a revision for a directory, two revisions, an unknown format.
    """
    place = resolve(source, revision)
    if isinstance(place, Path):
        return Checkpoint(os.fspath(source), Directory(place), format=format)
    raise HubError("reading from the hub is not there yet", where=place.repo)
