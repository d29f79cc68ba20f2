"""Tiny random models of every kind of cache, and what a request must give: the ids that it gives alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

import core
from core.nn import CacheSpec, Decoder
from tests.testing import recurrent

VOCABULARY = 61
CONFIG: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
EXPERTS = CONFIG | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
SCALINGS: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [4.0, 5.0, 6.0, 8.0],
        "original_max_position_embeddings": 40,
    },
}
"""Rotary embeddings whose frequencies depend on the length beyond 40 tokens."""
WINDOW = 8
KINDS = ("full", "window", "beside", "experts", "state", "recurrent", "packed")


@functools.cache
def model(kind: str) -> Decoder:
    """``beside``: a block with a window and one without; ``state``: one that keeps a state and one that attends;
    ``recurrent``: states alone; ``packed``: 4-bit weights."""
    mx.random.seed(5)
    match kind:
        case "full" | "packed":
            made = core.build(CONFIG | {"sliding_window": None, "hidden_size": 64, "intermediate_size": 64}).model
        case "window":
            made = core.build(CONFIG | {"sliding_window": WINDOW}).model
        case "beside":
            made = _joined(
                core.build(CONFIG | {"sliding_window": WINDOW}).model,
                core.build(CONFIG | {"sliding_window": None}).model,
            )
        case "experts":
            made = core.build(EXPERTS).model
        case "state" | "recurrent":
            made = core.build(recurrent.CONFIG | {"vocab_size": VOCABULARY}, plugin=recurrent.Recurrent()).model
            if kind == "state":
                made = _joined(made, core.build(CONFIG | {"sliding_window": None}).model)
        case _:
            raise AssertionError(kind)
    if kind == "packed":
        nn.quantize(made, group_size=32, bits=4, class_predicate=lambda path, module: hasattr(module, "to_quantized"))
    mx.eval(made.parameters())
    return made


def _joined(one: Decoder, other: Decoder) -> Decoder:
    """The first block of one model before the last of another."""
    made = Decoder(VOCABULARY, 32, [one.layers[0], other.layers[1]], other.norm)
    specs: list[CacheSpec] = [one.make_cache().blocks[0].spec, other.make_cache().blocks[1].spec]
    made.set_cache_specs(specs)
    return made


def prompt(seed: int, length: int) -> list[int]:
    """Ids that look random, the same for the same arguments."""
    return [(seed * 7919 + place * place * 31 + place * 17 + seed * place) % VOCABULARY for place in range(length)]


@functools.lru_cache(4096)
def alone(kind: str, ids: tuple[int, ...], max_tokens: int, **options: Any) -> tuple[int, ...]:
    """What the token loop gives for the request by itself."""
    return tuple(core.generate_tokens(model(kind), ids, max_tokens=max_tokens, **options))


def check_alone(kind: str, request: Any) -> None:
    """A request's greedy ids, however many it came to, are those that it gives alone."""
    assert request.result is not None, request.error
    found = request.result.token_ids
    expected = list(alone(kind, tuple(request.prompt_ids), request.max_tokens))[: len(found)]
    if found != expected:
        first = next(place for place, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
        assert _near_tie(kind, request.prompt_ids + expected[:first], found[first], expected[first]), (
            f"{request}: at token {first}, {found[first]} instead of {expected[first]}"
        )


def _near_tie(kind: str, ids: Sequence[int], one: int, other: int) -> bool:
    """Float32 sums of another order may decide between logits that differ by less than their rounding."""
    logits = model(kind)(mx.array([list(ids)]))[0, -1]
    return abs(float((logits[one] - logits[other]).item())) < 1e-5 * float(mx.abs(logits).max().item())  # type: ignore[arg-type]
