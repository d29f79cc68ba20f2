"""The files that go along with the weights: tokenizer, chat templates, generation config, licence. Never code.

Knows names of files; looks into none of them.
"""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from core.checkpoint import Checkpoint
from core.errors import SaveError
from core.saving.writer import refusals

_PATTERNS = (
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "tokenizer.model*",
    "*.model",
    "*.tiktoken",
    "chat_template.json",
    "*.jinja",
    "LICENSE*",
    "NOTICE*",
)


def companions(checkpoint: Checkpoint) -> list[str]:
    """Names of the files to carry along; of subdirectories, only that of the named chat templates."""
    return [name for name in checkpoint.files if _is_companion(name.rpartition("/")[2])]


def copy_companions(checkpoint: Checkpoint, directory: Path) -> None:
    """Copies a local checkpoint's companions, links as the files they point to.

    Raises:
        SaveError: a file has gone since the checkpoint was opened, or cannot be written.
    """
    root = checkpoint.path
    assert root is not None, "companions are copied from a directory"
    for name in companions(checkpoint):
        if not (root / name).is_file():
            raise SaveError(
                "is no longer there", where=root / name, hint="The source was moved or changed: load it again."
            )
        with refusals(directory / name):
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(root / name, directory / name)


def _is_companion(name: str) -> bool:
    return not name.endswith(".py") and any(fnmatchcase(name, pattern) for pattern in _PATTERNS)
