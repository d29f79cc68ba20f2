"""Checkpoints that the command line's tests need and no fixture is: quantized ones, and ones with hostile names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from tests.fixtures.variants import edit_config

GROUP = 32


def quantized(source: Path, directory: Path, bits_of: Callable[[str], int | None], *, default: int = 4) -> Path:
    """A copy of an unquantized checkpoint in MLX's own quantization, each matrix with the bits that ``bits_of`` says.

    Args:
        bits_of: from a matrix's path to its bits; None leaves it as it is.
        default: bits that the config states for all; others become overrides.
    """
    directory.mkdir(parents=True)
    shutil.copyfile(source / "config.json", directory / "config.json")
    tensors: dict[str, mx.array] = {}
    block: dict[str, Any] = {"bits": default, "group_size": GROUP}
    loaded = mx.load(str(source / "model.safetensors"))
    assert isinstance(loaded, dict)
    for name, array in loaded.items():
        matrix = name.removesuffix(".weight")
        bits = bits_of(matrix) if array.ndim == 2 else None
        if bits is None:
            tensors[name] = array
            continue
        if bits != default:
            block[matrix] = {"bits": bits, "group_size": GROUP}
        for role, part in zip(("weight", "scales", "biases"), mx.quantize(array, GROUP, bits), strict=True):
            tensors[f"{matrix}.{role}"] = part
    mx.save_safetensors(str(directory / "model.safetensors"), tensors)
    edit_config(directory, {"quantization": block})
    return directory


def with_chat_template(source: Path, directory: Path, template: str) -> Path:
    """A copy of a checkpoint with a chat template."""
    shutil.copytree(source, directory)
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return directory


def with_header(directory: Path, config: Mapping[str, Any], names: list[str]) -> Path:
    """A checkpoint of empty tensors with these names: its header is real, and there is nothing else."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    entries = {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}
    header = json.dumps(entries).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return directory
