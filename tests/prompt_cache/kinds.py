"""Tiny random models and cache settings, one of each kind of cache, and what continuing one gives."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

import core
from core.device import backend
from core.nn import Cache, Decoder
from tests.testing.recurrent import CONFIG as RECURRENT
from tests.testing.recurrent import Recurrent

MISTRAL: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
ON_CPU = backend() == "cpu"
ATOL = 1e-5 if ON_CPU else 2e-3  # a GPU's products with packed matrices may round to TF32
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({"sliding_window": None}, {}),
    "window": ({"sliding_window": 8}, {}),
    "limit": ({"sliding_window": None}, {"max_kv_tokens": 12}),
    "packed": ({"sliding_window": None}, {"kv_bits": 8, "kv_group_size": 32}),
    "packed limit": ({"sliding_window": None}, {"kv_bits": 4, "kv_group_size": 32, "max_kv_tokens": 12}),
    "state": (RECURRENT, {}),
    "beside": ({}, {}),  # a block with a window before a full one
}


@contextmanager
def recurrent() -> Iterator[None]:
    """The toy recurrent architecture, registered."""
    plugin = Recurrent()
    core.register("recurrent", plugin)
    try:
        yield
    finally:
        core.unregister("recurrent")


def model(kind: str, seed: int = 5) -> Decoder:
    """The model of a kind, in float32; another one for another seed."""
    return _model(kind, seed)


@functools.cache
def _model(kind: str, seed: int) -> Decoder:
    if kind == "beside":
        return _joined(_model("window", seed), _model("full", seed))
    changes = KINDS[kind][0]
    mx.random.seed(seed)
    with recurrent():
        built: Decoder = core.build(changes if changes is RECURRENT else MISTRAL | changes).model
    mx.eval(built.parameters())
    return built


def _joined(one: Decoder, other: Decoder) -> Decoder:
    made = Decoder(one.vocab_size, 64, [one.layers[0], other.layers[1]], other.norm)
    made.set_cache_specs([one.make_cache().specs[0], other.make_cache().specs[1]])
    mx.eval(made.parameters())
    return made


def settings(kind: str) -> dict[str, Any]:
    return KINDS[kind][1]


def empty(kind: str, seed: int = 5) -> Cache:
    return model(kind, seed).make_cache(**settings(kind))


def processed(kind: str, ids: Sequence[int], chunk: int = 1000) -> Cache:
    """A cache that has taken in these ids, chunk by chunk."""
    cache = empty(kind)
    for start in range(0, len(ids), chunk):
        feed(kind, cache, ids[start : start + chunk])
    return cache


def feed(kind: str, cache: Cache, ids: Sequence[int]) -> np.ndarray:
    """The last logits after these ids."""
    logits = model(kind)(mx.array([list(ids)]), cache)
    mx.eval(logits, cache.arrays())
    return np.array(logits[0, -1])


def assert_holds(kind: str, cache: Cache, ids: Sequence[int]) -> None:
    """Continued, it answers as one that was given ``ids``; for long enough that a window slides.

    A packed number that lies between two levels may be rounded to either, as the products before it are.
    """
    assert cache.length == len(ids)
    atol = max(ATOL, 1e-3) if kind.startswith("packed") else ATOL
    fresh = processed(kind, ids)
    for probe in ([4, 8, 15], [16], [23], list(range(40)), [42]):
        np.testing.assert_allclose(feed(kind, cache, probe), feed(kind, fresh, probe), atol=atol, rtol=1e-5)


def scribble(cache: Cache) -> None:
    """Writes over a cache's buffers in place, as a kernel does that MLX knows nothing of; on a CPU."""
    for array in cache.arrays():
        memory = np.array(array, copy=False)
        memory.flags.writeable = True
        memory[:] = 77
