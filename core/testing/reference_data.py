"""A reference directory: a checkpoint, and another implementation's results for it (``reference.npz``).

| array | shape | meaning |
|---|---|---|
| ``input_ids``, ``logits`` | [n], [n, vocab] | a prompt and its logits, float32, without a cache |
| ``continuation``, ``continuation_logits`` | [m], [m, vocab] | its greedy continuation, with the reference's cache |
| ``short_…`` | | the same four of a short prompt |
| ``hidden_states`` | [blocks + 1, 1, n, hidden] | the input of the first block, and the output of each |

All but the first two may be absent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from core.errors import CheckpointError

ARRAYS = "reference.npz"


@dataclass(frozen=True)
class Reference:
    """A reference directory, read.

    Attributes:
        path: the checkpoint.
        arrays: name → array, as in the table above.
    """

    path: Path
    arrays: dict[str, mx.array] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Reads ``reference.npz`` of a directory, or the file itself.

        Raises:
            CheckpointError: there is none, it cannot be read, or it lacks the logits.
        """
        file = path / ARRAYS if path.is_dir() else path
        hint = "python -m core.testing.reference CONFIG OUT makes one."
        if not file.is_file():
            raise CheckpointError("there is no reference", where=path, expected=ARRAYS, hint=hint)
        try:
            arrays = mx.load(str(file), format="npz")
        except (RuntimeError, ValueError) as error:
            raise CheckpointError("the reference cannot be read", where=file, found=str(error), hint=hint) from error
        assert isinstance(arrays, dict)
        missing = [name for name in ("input_ids", "logits") if name not in arrays]
        if missing:
            raise CheckpointError(f"the reference lacks {' and '.join(missing)}", where=file, hint=hint)
        return cls(file.parent, {name: _narrow(array) for name, array in arrays.items()})

    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint's ``config.json``."""
        parsed: dict[str, Any] = json.loads((self.path / "config.json").read_text())
        return parsed

    @property
    def defaults(self) -> dict[str, Any]:
        """Config key → the reference implementation's default; empty where the reference does not say."""
        file = self.path / "meta.json"
        meta: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        found: dict[str, Any] = meta.get("defaults") or {}
        return found

    def prompts(self) -> list[tuple[str, mx.array, mx.array]]:
        """Name, ids ``[1, n]`` and logits ``[1, n, vocab]`` of each prompt."""
        return [
            (prefix or "long", self.arrays[f"{prefix}input_ids"][None], self.arrays[f"{prefix}logits"][None])
            for prefix in ("", "short_")
            if f"{prefix}logits" in self.arrays and f"{prefix}input_ids" in self.arrays
        ]

    def continuations(self) -> list[tuple[str, mx.array, mx.array, mx.array]]:
        """Name, prompt ``[1, n]``, continuation ``[1, m]`` and its logits ``[1, m, vocab]``."""
        return [
            (
                prefix or "long",
                self.arrays[f"{prefix}input_ids"][None],
                self.arrays[f"{prefix}continuation"][None],
                self.arrays[f"{prefix}continuation_logits"][None],
            )
            for prefix in ("", "short_")
            if f"{prefix}continuation_logits" in self.arrays
        ]


def _narrow(array: mx.array) -> mx.array:
    return array.astype(mx.int32) if mx.issubdtype(array.dtype, mx.integer) else array
