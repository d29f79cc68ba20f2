"""A checkpoint on the Hugging Face hub: lists it, reads parts of it or downloads it, with huggingface_hub.

Token, cache directory, endpoint and offline mode are the client's, from its standard environment (``HF_TOKEN``,
``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ...). The client is imported inside the functions that need it,
because its import takes longer than all others together.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path

from core.checkpoint.header import Ranges
from core.checkpoint.hub_errors import translated
from core.checkpoint.ranges import HttpRanges
from core.checkpoint.source import HubId
from core.checkpoint.storage import Directory, belongs, open_local

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "params.json",
    "hf_quant_config.json",
    "quantize_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "tokenizer.model*",
    "*.model",
    "*.model.v*",
    "*.tiktoken",
    "chat_template.json",
    "*.jinja",
    "LICENSE*",
    "NOTICE*",
    "README.md",
)
"""Files to download with the weights: configs, tokenizers, templates, licences, the model card. No code, no pickles."""


class Repository:
    """A hub repository at one commit, as storage: small files come through the cache, headers by range requests."""

    concurrency = 8

    def __init__(self, hub: HubId, *, progress: bool = False) -> None:
        """Lists the repository: one request.

        Raises:
            HubError: the hub could not be reached, or refused.
        """
        with translated(hub):
            from huggingface_hub import HfApi

            # Without a time limit, the client would wait for ever for a hub that accepts the connection and does not
            # answer.
            info = HfApi().model_info(hub.repo, revision=hub.revision, files_metadata=True, timeout=30)
            if info.sha is None:
                raise ValueError("the listing names no commit")
            sizes: Mapping[str, int | None] = {file.rfilename: file.size for file in info.siblings or ()}
        self._hub = hub
        self._sizes = sizes
        self._progress = progress
        self.commit = info.sha
        self.names = tuple(sorted(filter(belongs, sizes)))

    def where(self, name: str = "") -> str:
        root = f"hub:{self._hub.repo}@{self._hub.revision or 'main'}"
        return f"{root}/{name}" if name else root

    def read(self, name: str, limit: int) -> bytes | None:
        size = self._sizes.get(name)
        if size is not None and size > limit:
            return None
        with open_local(self._cached(name) or self._fetched(name)) as file:
            return file.read(0, file.size) if file.size <= limit else None

    def open(self, name: str) -> AbstractContextManager[Ranges]:
        path = self._cached(name)
        if path is not None:
            return open_local(path)
        return nullcontext(HttpRanges(self._hub, self.commit, name))

    def download(self, weights: tuple[str, ...]) -> Directory:
        """The snapshot with `weights` and their companions, on the local disk.

        Files that are complete in the cache are not downloaded again, and a connection that breaks is resumed where it
        broke. A file appears under its name only when it is complete.

        Raises:
            HubError: as the class; or the cache cannot be written.
        """
        wanted = {*weights, *filter(is_companion, self.names)}
        with translated(self._hub), _progress_bars(self._progress):
            from huggingface_hub import snapshot_download

            # Ask for the revision, not the commit: the cache then records which commit "main" was, for use offline.
            patterns = [glob.escape(name) for name in sorted(wanted)]
            path = snapshot_download(self._hub.repo, revision=self._hub.revision, allow_patterns=patterns)
        return Directory(Path(path))

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self._hub.repo, name, revision=self.commit)
        return Path(path) if isinstance(path, str) else None

    def _fetched(self, name: str) -> Path:
        with translated(self._hub), _progress_bars(self._progress):
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(self._hub.repo, name, revision=self.commit))


def cached_snapshot(hub: HubId) -> Directory | None:
    """The cached files of a repository, complete or not, without a request to the hub; None if there are none."""
    with translated(hub):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            # The pattern matches no file, so the client does not check whether the snapshot is complete.
            path = snapshot_download(hub.repo, revision=hub.revision, allow_patterns=[], local_files_only=True)
        except LocalEntryNotFoundError:
            return None
    return Directory(Path(path))


def is_companion(name: str) -> bool:
    """Whether a file is downloaded with the weights."""
    plain = name.rpartition("/")[2]
    return not plain.endswith(".py") and any(fnmatchcase(plain, pattern) for pattern in COMPANIONS)


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Shows the client's progress bars on stderr if ``shown``; the client's environment variable overrides it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but re-exported without saying so
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled() == (not shown):
        yield
        return
    (enable_progress_bars if shown else disable_progress_bars)()
    try:
        yield
    finally:
        (disable_progress_bars if shown else enable_progress_bars)()
