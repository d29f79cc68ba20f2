"""A reference in Mistral's own layout: the same numbers under other names, and the reference's logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx

from tests.fixtures.layouts import arrays_of, config_of, in_native_layout


def write_native(source: Path, directory: Path) -> Path:
    """Writes the reference ``source`` in that layout, permuted by the fixtures' own code and not by the map."""
    directory.mkdir(parents=True)
    config = config_of(source)
    tensors = in_native_layout(arrays_of(source), config)
    mx.save_safetensors(str(directory / "model.safetensors"), tensors, {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    shutil.copyfile(source / "reference.npz", directory / "reference.npz")
    return directory
