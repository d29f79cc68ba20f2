"""Identifies a model cheaply, by its settings, samples of its weights, and samples of its tokenizer's output.

It is not a proof: only samples of the weights are compared, so models that differ in a few elements may look the same.
Any other training, quantization or merge changes nearly all elements.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

_SAMPLES = 64  # elements of each parameter, evenly spaced
_TOKENS = 256  # ids, evenly spaced
_PROBE = "The 3 quick brown\n\n  foxes' naïve café — 東京 🦊, x+=1;"


def fingerprint(model: Any) -> dict[str, str | None]:
    """A digest for each part.

    Args:
        model: a ``LanguageModel``, or its module tree alone.

    Returns:
        ``weights`` (names, shapes, dtypes, samples, and the modules' own settings), ``config`` and ``tokenizer``; None
        for what the model does not have.
    """
    modules = model if isinstance(model, nn.Module) else model.model
    config, tokenizer = getattr(model, "config", None), getattr(model, "tokenizer", None)
    return {
        "weights": _weights(modules),
        "config": None if config is None else _digest(config.model_dump_json()),
        "tokenizer": None if tokenizer is None else _tokenizer(tokenizer),
    }


def differing(saved: Mapping[str, object], present: Mapping[str, str | None]) -> list[str]:
    """The names of the parts that differ. A part that either side lacks is not compared."""
    return [
        part
        for part, digest in present.items()
        if digest is not None and saved.get(part) is not None and saved[part] != digest
    ]


def _weights(model: nn.Module) -> str:
    flat: list[tuple[str, mx.array]] = tree_flatten(model.parameters())  # type: ignore[assignment]
    parameters = dict(sorted(flat))
    names = [(name, str(array.dtype), array.shape) for name, array in parameters.items()]
    settings = sorted((path, *item) for path, module in model.named_modules() for item in _settings(module))
    samples = [_sample(array) for array in parameters.values() if array.size]
    data = bytes(memoryview(mx.concatenate(samples))) if samples else b""  # type: ignore[arg-type]
    return _digest(repr((names, settings)), data)


def _settings(owner: object, depth: int = 3) -> Iterator[tuple[str, str]]:
    """The plain values among a module's attributes and among their attributes: sizes, epsilons, rotary parameters."""
    for name, value in vars(owner).items():
        if name.startswith("_") or isinstance(value, nn.Module):
            continue
        if _plain(value) or (isinstance(value, list | tuple) and all(map(_plain, value))):
            yield name, repr(value)
        elif depth and hasattr(value, "__dict__"):
            yield from ((f"{name}.{inner}", text) for inner, text in _settings(value, depth - 1))
        elif dataclasses.is_dataclass(value):  # with slots
            yield name, repr(value)


def _plain(value: object) -> bool:
    return isinstance(value, int | float | str | None)


def _sample(array: mx.array) -> mx.array:
    """Some elements' bytes."""
    step = -(-array.size // _SAMPLES)
    return mx.contiguous(array.reshape(-1)[::step]).view(mx.uint8)


def _tokenizer(tokenizer: Any) -> str:
    size = tokenizer.vocab_size
    ids = range(0, size, -(-size // _TOKENS))
    pieces = [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in ids]
    return _digest(json.dumps([size, tokenizer.bos_id, pieces, tokenizer.encode(_PROBE)]))


def _digest(text: str, data: bytes = b"") -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") + b"\0" + data).hexdigest()
