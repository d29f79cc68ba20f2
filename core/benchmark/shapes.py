"""Shapes of published models by a short name, with the content of their ``config.json``; or read from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError, UsageError

_SHARED = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "num_key_value_heads": 8,
}
_EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}

SHAPES: dict[str, dict[str, Any]] = {
    # mistralai/Mistral-7B-v0.3
    "mistral-7b": {
        **_SHARED,
        "model_type": "mistral",
        "vocab_size": 32768,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "max_position_embeddings": 32768,
    },
    # mistralai/Mixtral-8x7B-v0.1
    "mixtral-8x7b": {
        **_SHARED,
        **_EXPERTS,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "max_position_embeddings": 32768,
    },
    # mistralai/Mixtral-8x22B-v0.1
    "mixtral-8x22b": {
        **_SHARED,
        **_EXPERTS,
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_attention_heads": 48,
        "num_hidden_layers": 56,
        "max_position_embeddings": 65536,
    },
}


@dataclass(frozen=True)
class Shape:
    """A model to make of random weights.

    Attributes:
        name: what a report calls it.
        config: as parsed from a ``config.json``.
        bits: of the quantized matrices, in groups of ``group_size``; None keeps all in bfloat16.
    """

    name: str
    config: Mapping[str, Any]
    bits: int | None = None
    group_size: int = 64


def read_shape(name: str, *, bits: int | None = None, layers: int | None = None) -> Shape:
    """A shape by its name in ``SHAPES``, or from a file like ``config.json``, or from a directory that has one.

    Args:
        name: of the shape, file or directory.
        bits: 16 and None are bfloat16.
        layers: use so many blocks instead of the config's.

    Raises:
        UsageError: there is no such name or file.
        ConfigError: the file is not a config.
    """
    config = SHAPES[name] if name in SHAPES else _read(Path(name))
    # Keys about the file's weights do not hold for random ones.
    config = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
    shown = name
    if layers is not None:
        if layers < 1:
            raise UsageError("layers is out of range", expected="1 or more", found=layers)
        config["num_hidden_layers"] = layers
        shown += f", {layers} layers"
    return Shape(shown, config, None if bits == 16 else bits)


def _read(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(
            f"there is no shape of this name, and no file: {error.strerror}",
            where=path,
            expected=f"{', '.join(SHAPES)} or a config.json",
        ) from None
    except ValueError as error:
        raise ConfigError("is not JSON", where=file, found=str(error)) from None
    if not isinstance(found, dict):
        raise ConfigError("is not an object", where=file, expected="a config", found=type(found).__name__)
    return found
