"""The files that go along with the weights: tokenizer, chat templates, generation config, licence. Never code.

Knows names of files; looks into none of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from core.checkpoint import Checkpoint
from core.checkpoint.hub import is_companion
from core.errors import SaveError
from core.saving.writer import refusals

_OF_WEIGHTS = frozenset({"config.json", "params.json", "hf_quant_config.json", "quantize_config.json"})
"""Configs that tell of the weights as they were in the source; the target's own says what they are now."""


def companions(checkpoint: Checkpoint) -> list[str]:
    """Names of the files to carry along; of subdirectories, only that of the named chat templates."""
    return [name for name in checkpoint.files if is_companion(name) and name not in _OF_WEIGHTS]


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
