"""``open_checkpoint``: from a path or hub id to a `Checkpoint`."""

from __future__ import annotations

import os
from pathlib import Path

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.hub import Repository, cached_snapshot
from core.checkpoint.layout import HF, MISTRAL
from core.checkpoint.source import HubId, resolve
from core.checkpoint.storage import Directory
from core.errors import CheckpointError, HubError, UsageError


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
            ``"org/name"`` or ``"org/name@revision"``. Anything that exists on disk or looks like a path is a path.
        revision: branch, tag or commit of a hub repository.
        download: whether a hub repository's weights are downloaded. If not, headers and small files are read over the
            network at first use, and `Checkpoint.path` is None.
        progress: whether a download shows its progress on stderr.
        format: ``"hf"`` or ``"mistral"``, for checkpoints that hold both; None takes the first of these that is there.

    Raises:
        CheckpointError: no such directory, a file, an unreadable directory. Absent or damaged weights are an error only
            of `Checkpoint.shards` and `Checkpoint.tensors`, so that a directory with only a config or a tokenizer can
            be opened too.
        HubError: the hub could not be reached, or refused.
        UsageError: a revision for a directory, two revisions, an unknown format.
    """
    if format not in (None, HF, MISTRAL):
        raise UsageError(f"unknown format {format!r}", expected=f"{HF!r} or {MISTRAL!r}")
    place = resolve(source, revision)
    name = os.fspath(source)
    if isinstance(place, Path):
        return Checkpoint(name, Directory(place), format=format)
    try:
        repository = Repository(place, progress=progress)
    except HubError as error:
        return _from_cache(name, place, format, error, whole=download)
    checkpoint = Checkpoint(name, repository, revision=repository.commit, format=format)
    return checkpoint.fetch_weights() if download else checkpoint


def _from_cache(name: str, hub: HubId, format: str | None, error: HubError, *, whole: bool) -> Checkpoint:
    """The cached copy of a repository that the hub did not give. Raises `error`, completed, if the copy is not
    enough."""
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    # The hub answered that the revision does not exist: a cached branch of that name has been deleted there.
    directory = None if isinstance(error.__cause__, RevisionNotFoundError) else cached_snapshot(hub)
    if directory is None:
        if not isinstance(error.__cause__, HfHubHTTPError):
            problem = f"{error.problem}, and nothing of the repository is cached"
            raise HubError(problem, where=error.where, found=error.found, hint=error.hint) from error.__cause__
        raise error
    checkpoint = Checkpoint(name, directory, revision=directory.path.name, format=format)
    if whole:
        try:
            checkpoint.shards  # noqa: B018
        except CheckpointError as missing:
            problem = f"{error.problem}, and the cache holds only a part of the repository"
            raise HubError(problem, where=error.where, found=missing.found, hint=error.hint) from error.__cause__
    return checkpoint
