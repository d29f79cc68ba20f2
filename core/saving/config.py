"""The config of a written checkpoint: the source's own, with what has changed.

Knows the keys ``quantization``, ``quantization_config``, ``torch_dtype`` and ``dtype``; passes every other one through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import mlx.core as mx

from core.weights import Quantization, QuantizationConfig
from core.weights.dtypes import spelling

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
        dtype: the dtype that all floats were converted to; None where they kept theirs.
    """
    config = {key: value for key, value in raw.items() if key not in _KEYS}
    if dtype is not None:
        keys = [key for key in ("torch_dtype", "dtype") if key in raw] or ["torch_dtype"]
        config |= dict.fromkeys(keys, spelling(dtype))
    if quantized:
        block = _block(raw, quantized, names)
        config |= dict.fromkeys(_KEYS, block)  # mlx-lm reads the first, other tools of the hub the second
    return config


def _block(raw: Mapping[str, Any], quantized: Mapping[str, Quantization], names: Collection[str]) -> dict[str, Any]:
    """The source's own block where it is true of the target, too; else one with an override for each exception."""
    theirs = QuantizationConfig.from_config(raw)
    if theirs is not None and _tells(theirs, quantized, names):
        return dict(raw.get("quantization") or raw["quantization_config"])
    default = Counter(quantized.values()).most_common(1)[0][0]
    if theirs is not None and theirs.default in quantized.values():
        default = theirs.default
    overrides = {path: _settings(own) for path, own in quantized.items() if own != default}
    return _settings(default) | overrides


def _tells(theirs: QuantizationConfig, quantized: Mapping[str, Quantization], names: Collection[str]) -> bool:
    """Whether a block says of every matrix what it is, and nothing of matrices that are not there."""
    paths = {name.rpartition(".")[0] for name in names}
    return all(theirs.of(path) == own for path, own in quantized.items()) and all(
        path in paths and (own is None or path in quantized) for path, own in theirs.overrides.items()
    )


def _settings(own: Quantization) -> dict[str, Any]:
    return {"group_size": own.group_size, "bits": own.bits, "mode": own.mode}
