"""Copies a checkpoint's companion files: tokenizer, chat templates, generation config, licence. Never code.

A saved checkpoint may be published, so links out of the source are not followed: a ``LICENSE`` that points to a user's
keys would publish them. (A config or a shard may be such a link: it is read, and never copied.)
"""

from __future__ import annotations

import shutil
from pathlib import Path

from core.checkpoint import Checkpoint
from core.checkpoint.hub import is_companion
from core.errors import SaveError, refusals

CARD = "README.md"
_MADE = frozenset({"config.json", "params.json", "hf_quant_config.json", "quantize_config.json", CARD})
"""The card, and configs that describe the source's weights: the target gets its own."""


def companions(checkpoint: Checkpoint) -> list[str]:
    """Names of the files to copy. The only subdirectory included is that of the named chat templates.

    Raises:
        SaveError: one of a local checkpoint is a link out of it.
    """
    names = [name for name in checkpoint.files if is_companion(name) and name not in _MADE]
    if checkpoint.path is not None:
        for name in [*names, *[CARD] * checkpoint.has(CARD)]:
            local_file(checkpoint.path, name)
    return names


def left_behind(checkpoint: Checkpoint) -> list[str]:
    """Names of the files and directories that are neither read nor copied, without those that begin with a dot."""
    known = {*checkpoint.shards, *companions(checkpoint), *_MADE}
    names = [name for name in checkpoint.files if name not in known and not name.endswith(".safetensors.index.json")]
    if checkpoint.path is not None:
        kept = {name.partition("/")[0] for name in checkpoint.files}
        names += [f"{path.name}/" for path in checkpoint.path.iterdir() if path.is_dir() and path.name not in kept]
    return sorted(name for name in names if not name.startswith("."))


def copy_companions(checkpoint: Checkpoint, directory: Path) -> None:
    """Copies a local checkpoint's companion files. Of a link, the file that it points to is copied.

    Raises:
        SaveError: a file has gone since the checkpoint was opened, is a link out of it, or cannot be written.
    """
    root = checkpoint.path
    assert root is not None, "companions are copied from a directory"
    for name in companions(checkpoint):
        with refusals(directory / name):
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(local_file(root, name), directory / name)


def local_file(root: Path, name: str) -> Path:
    """The file of this name, which must lie in the checkpoint, or among its repository's blobs in the hub's cache.

    Raises:
        SaveError: it lies elsewhere, or is not a file.
    """
    try:
        file, home = (root / name).resolve(strict=True), root.resolve()
    except (OSError, RuntimeError):  # the name does not exist, or is a loop of links
        file = home = Path()
    if not file.is_file():
        hint = "The source was moved or changed: load it again."
        raise SaveError("is not a file, or no longer exists", where=root / name, hint=hint)
    if home in file.parents or (home.parent.name == "snapshots" and home.parent.parent / "blobs" in file.parents):
        return file
    raise SaveError(
        "is a link out of the checkpoint, and is not copied",
        where=root / name,
        expected="a file, or a link within the checkpoint",
        found=str(file),
        hint="What is written may be published. If the file belongs to the model, put a copy in the link's place.",
    )
