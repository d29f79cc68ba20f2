"""``Checkpoint``: an opened checkpoint with its files, its layout and its tensors. Each part is read at first use.

No tensor data is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from core.checkpoint.bounded_json import LFS_HINT, LFS_PREFIX, LFS_PROBLEM, decode, parse_object
from core.checkpoint.header import TensorInfo
from core.checkpoint.layout import HF, MISTRAL, Layout, find_formats, find_layout
from core.checkpoint.storage import Directory, Storage
from core.checkpoint.tensors import read_tensors
from core.errors import CheckpointError, ConfigError, CoreError

_CONFIGS = {HF: "config.json", MISTRAL: "params.json"}
MAX_TEXT = 256_000_000
"""Bytes of a text or JSON file; the largest tokenizers have about 40 million."""


class Checkpoint:
    """The files of one model, local or on the hub. Made by `open_checkpoint`.

    Attributes:
        source: the directory or id, as the user gave it.
        path: the local directory; None for a hub repository that is not downloaded.
        revision: the commit of a hub repository; None for a directory.
    """

    def __init__(
        self, source: str, storage: Storage, *, revision: str | None = None, format: str | None = None
    ) -> None:
        self.source = source
        self.revision = revision
        self._storage = storage
        self._format = format

    def __repr__(self) -> str:
        return f"<Checkpoint {self.where()}>"

    @property
    def path(self) -> Path | None:
        return self._storage.path if isinstance(self._storage, Directory) else None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files, sorted. The only subdirectory included is ``additional_chat_templates/``."""
        return self._storage.names

    def has(self, name: str) -> bool:
        return name in self._storage.names

    def where(self, name: str = "") -> str:
        """How an error names a file: its path, or ``hub:org/name@revision/file``. Without a name, how it names the
        checkpoint."""
        return self._storage.where(name)

    def read_text(self, name: str) -> str:
        """A file as text.

        Raises:
            CheckpointError: it is absent, unreadable, too large, not UTF-8, or a git-LFS pointer.
        """
        data = self._read(name, CheckpointError)
        if data.startswith(LFS_PREFIX):
            raise CheckpointError(LFS_PROBLEM, where=self.where(name), hint=LFS_HINT)
        return decode(data, where=self.where(name), error=CheckpointError)

    def read_json(self, name: str) -> dict[str, object]:
        """A file that holds one JSON object.

        Raises:
            CheckpointError: it is absent or unreadable.
            ConfigError: it is too large, not UTF-8, not JSON (with line and column), not an object, nested too deeply,
                or a git-LFS pointer.
        """
        return parse_object(self._read(name, ConfigError), where=self.where(name), error=ConfigError)

    @property
    def config_name(self) -> str:
        """The config's file name: ``params.json`` for Mistral's own format, else ``config.json``."""
        native = self._format or next(iter(self.formats), HF if self.has(_CONFIGS[HF]) else MISTRAL)
        return _CONFIGS[MISTRAL] if native == MISTRAL and self.has(_CONFIGS[MISTRAL]) else _CONFIGS[HF]

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats in which weights are present, judged by file names: ``"hf"``, ``"mistral"``; the default comes
        first."""
        return find_formats(self._storage.names)

    @property
    def format(self) -> str:
        """The format to read: the one that the caller chose, or the first of `formats`. Raises the errors of
        `shards`."""
        return self._layout.format

    @property
    def shards(self) -> tuple[str, ...]:
        """The safetensors files that make up the model, in order.

        Raises:
            CheckpointError: there are none, some are missing, or several sets of files could be the model.
        """
        return self._layout.shards

    @property
    def stray(self) -> tuple[str, ...]:
        """Safetensors files that are not part of the model. They are reported, and not read. Raises the errors of
        `shards`."""
        return self._layout.stray

    @property
    def alternates(self) -> tuple[str, ...]:
        """Safetensors files of the same model in the format that is not read. Raises the errors of `shards`."""
        return self._layout.alternates

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, shard by shard in the order of their data, from the headers alone.

        Raises:
            CheckpointError: a shard is damaged, or the shards contradict each other or the index.
        """
        return MappingProxyType(read_tensors(self._storage, self._layout))

    def shard_path(self, name: str) -> Path:
        """Local path of one of `shards`, for loading.

        Raises:
            CheckpointError: the checkpoint is not downloaded, or has no such shard.
        """
        if self.path is None:
            raise CheckpointError("is not downloaded", where=self.where(name), hint="call fetch_weights() first")
        if name not in self.shards:
            raise CheckpointError(
                "is not one of the model's shards", where=self.where(name), expected=", ".join(self.shards[:5])
            )
        return self.path / name

    def check_unchanged(self, name: str, descriptor: int | None = None) -> None:
        """Checks that a local shard has not changed since its header was read.

        Args:
            name: one of `shards`, after `tensors` has been read.
            descriptor: of the shard as the caller has opened it; both it and the file of that name are checked.

        Raises:
            CheckpointError: it has been written to or replaced since, or is gone.
        """
        if isinstance(self._storage, Directory):
            self._storage.check_unchanged(name, descriptor)

    def fetch_weights(self) -> Checkpoint:
        """The checkpoint with its weights on the local disk; the same object if they are there already.

        Raises:
            CheckpointError: as `shards`, before any download; or the downloaded tensors differ from `tensors`.
            HubError: the download failed. Complete files are kept, and the next call resumes it.
        """
        if self.path is not None:
            return self
        index = () if self._layout.index_name is None else (self._layout.index_name,)
        directory = self._storage.download((*self.shards, *index))
        # A branch may have moved since it was listed; the commit to name is that of the downloaded files.
        fetched = Checkpoint(self.source, directory, revision=directory.path.name, format=self._format)
        if "tensors" in self.__dict__ and fetched.tensors != self.tensors:
            raise CheckpointError(
                "the tensors that were downloaded are not those that were listed",
                where=self.where(),
                found=f"commit {fetched.revision}, and {self.revision} before",
                hint="The repository has changed meanwhile: run it again.",
            )
        return fetched

    def fetch_text(self) -> Checkpoint:
        """The checkpoint with its small files (config, tokenizer, templates) on the local disk, without weights.

        Raises:
            HubError: as `fetch_weights`.
        """
        if self.path is not None:
            return self
        directory = self._storage.download(())
        return Checkpoint(self.source, directory, revision=directory.path.name, format=self._format)

    @cached_property
    def _layout(self) -> Layout:
        return find_layout(self._storage, self._format)

    def _read(self, name: str, error: type[CoreError]) -> bytes:
        if not self.has(name):
            raise CheckpointError(
                f"has no {name}", where=self.where(), found=self._what_is_here(), hint=self._elsewhere(name)
            )
        data = self._storage.read(name, MAX_TEXT)
        if data is None:
            raise error("is too large", where=self.where(name), expected=f"at most {MAX_TEXT:,} bytes")
        return data

    def _what_is_here(self) -> str:
        shown, more = ", ".join(self.files[:6]), len(self.files) - 6
        return (shown + (f" and {more:,} more files" if more > 0 else "")) or "no files"

    def _elsewhere(self, name: str) -> str:
        """A hint where else to look: users often pass the parent directory of a checkpoint."""
        if self.path is not None:
            try:
                below = sorted(str(path.parent) for path in self.path.glob(f"*/{name}"))
            except OSError:
                below = []
            if below:
                return f"did you mean {' or '.join(below[:3])}?"
        return "pass a directory or hub repository that holds a whole checkpoint"
