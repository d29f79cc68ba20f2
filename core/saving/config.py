"""The config of a saved checkpoint: the source's own with the necessary changes, or translated to the other format.

Only ``quantization``, ``quantization_config``, ``torch_dtype`` and ``dtype`` change; every other key is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import mlx.core as mx

from core.checkpoint import Checkpoint
from core.config import ModelConfig
from core.config.native import from_params, to_params
from core.errors import UsageError
from core.registry import BoundPlugin
from core.saving.table import Tensor
from core.weights import Quantization, QuantizationConfig
from core.weights.dtypes import FLOATS, spelling

_KEYS = ("quantization", "quantization_config")


def written_config(
    raw: Mapping[str, Any],
    quantized: Mapping[str, Quantization],
    names: Collection[str],
    *,
    dtype: mx.Dtype | None = None,
) -> dict[str, Any]:
    """The ``config.json`` to write.

    Args:
        raw: the source's, as parsed.
        quantized: path in the target → its settings.
        names: the target's tensors.
        dtype: the dtype that all floats were converted to; None if they were not converted.
    """
    config = {key: value for key, value in raw.items() if key not in _KEYS}
    if dtype is not None:
        keys = [key for key in ("torch_dtype", "dtype") if key in raw] or ["torch_dtype"]
        config |= dict.fromkeys(keys, spelling(dtype))
    if quantized:
        block = _block(raw, quantized, names)
        config |= dict.fromkeys(_KEYS, block)  # mlx-lm reads the first key, other tools of the hub read the second
    return config


def written_params(
    params: Mapping[str, Any], quantized: Mapping[str, Quantization], names: Collection[str]
) -> dict[str, Any]:
    """The ``params.json`` to write; arguments as for ``written_config``."""
    written = {key: value for key, value in params.items() if key not in _KEYS}
    return written | ({_KEYS[0]: _block(params, quantized, names)} if quantized else {})


def native_config(source: Checkpoint, plugin: BoundPlugin, config: ModelConfig) -> dict[str, Any]:
    """``params.json`` of the source, or one translated from its ``config.json``.

    Raises:
        UsageError: the format cannot express the whole config.
    """
    if source.config_name == "params.json":
        return dict(source.read_json("params.json"))
    params = to_params(config)
    read = from_params(params)
    again, stated = (one.model_dump(exclude={"architectures"}) for one in (plugin.parse_config(read), config))
    lost = [key for key in stated if again.get(key) != stated[key]]
    if lost or read["model_type"] != config.model_type:
        raise UsageError(
            f"a params.json cannot say what the config says of {', '.join(lost or ['model_type'])}",
            where=source.where(source.config_name),
            found=", ".join(f"{key}: {stated[key]!r}" for key in lost)[:300] or repr(config.model_type),
            hint="Choose another layout than mistral.",
        )
    return params


def config_of(raw: Mapping[str, Any], config: ModelConfig, tensors: Iterable[Tensor]) -> dict[str, Any]:
    """The ``config.json`` of a model that was read from a ``params.json``, with the keys that other tools look for.

    Args:
        raw: the source's, translated to the keys of ``config.json``; keys that are not read are left out.
        config: the plugin's config object.
        tensors: the target's, for their dtype.
    """
    unread = set(config.unread_keys(raw))
    sizes = Counter[mx.Dtype]()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.nbytes if tensor.dtype in FLOATS.values() else 0
    named = sorted(config.causal_architectures)
    written: dict[str, Any] = {"architectures": named} if len(named) == 1 else {}
    written |= {key: value for key, value in raw.items() if key not in unread}
    return written | ({"torch_dtype": spelling(sizes.most_common(1)[0][0])} if sizes else {})


def _block(raw: Mapping[str, Any], quantized: Mapping[str, Quantization], names: Collection[str]) -> dict[str, Any]:
    """The source's own block if it is right for the target too; else a new one with an override for each exception."""
    theirs = QuantizationConfig.from_config(raw)
    if theirs is not None and _tells(theirs, quantized, names):
        return dict(raw.get("quantization") or raw["quantization_config"])
    default = Counter(quantized.values()).most_common(1)[0][0]
    if theirs is not None and theirs.default in quantized.values():
        default = theirs.default
    overrides = {path: _settings(own) for path, own in quantized.items() if own != default}
    return _settings(default) | overrides


def _tells(theirs: QuantizationConfig, quantized: Mapping[str, Quantization], names: Collection[str]) -> bool:
    """Whether a block states the right settings of every matrix, and names no matrix that does not exist."""
    paths = {name.rpartition(".")[0] for name in names}
    return all(theirs.of(path) == own for path, own in quantized.items()) and all(
        path in paths and (own is None or path in quantized) for path, own in theirs.overrides.items()
    )


def _settings(own: Quantization) -> dict[str, Any]:
    return {"group_size": own.group_size, "bits": own.bits, "mode": own.mode}
