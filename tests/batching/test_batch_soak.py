"""Two thousand requests with random settings, cancellations and errors: nothing leaks, nobody sees another's tokens."""

from __future__ import annotations

import gc
import random
from typing import Any

import mlx.core as mx
import pytest

import core
from core.batching import BatchRequest
from core.errors import CoreError, ProcessorError
from tests.batching.models import VOCABULARY, check_alone, model, prompt

REQUESTS = 2000
ALLOWED = 64  # bytes: a scalar that a later step replaces


def failing(logits: mx.array, context: Any) -> mx.array:
    if context.generated == 2:
        raise ValueError("this one fails")
    return logits


def settings(rng: random.Random) -> dict[str, Any]:
    """Half of them greedy."""
    options: dict[str, Any] = {"max_tokens": rng.choice([0, 1, 2, 3, 5, 8, 12])}
    if rng.random() < 0.5:
        options |= {"temperature": rng.choice([0.5, 1.0]), "seed": rng.randrange(1000)}
        name, value = rng.choice(
            [("top_k", 5), ("top_p", 0.7), ("min_p", 0.1), ("repetition_penalty", 1.2), ("frequency_penalty", 0.5)]
        )
        options[name] = value
    if rng.random() < 0.1:
        options["logprobs"] = rng.randrange(4)
    if rng.random() < 0.1:
        options["eos"] = [rng.randrange(VOCABULARY) for _ in range(10)]
    if rng.random() < 0.02:
        options["processors"] = [failing]
    return options


def run(batch: core.Batch, count: int, rng: random.Random) -> list[tuple[BatchRequest, dict[str, Any]]]:
    """Submits, steps, cancels; every refused request is one of those that had to be refused."""
    made: list[tuple[BatchRequest, dict[str, Any]]] = []
    while len(made) < count:
        for _ in range(rng.randrange(24)):
            options = settings(rng)
            made.append((batch.submit(prompt(rng.randrange(10), rng.choice([1, 2, 6, 9, 20])), **options), options))
        if rng.random() < 0.1:
            bad: Any = rng.choice([[], [VOCABULARY], [-1], ["a"]])
            with pytest.raises(CoreError):
                batch.submit(bad, max_tokens=3)
        if rng.random() < 0.1:
            rng.choice(made[-20:] or [(batch.submit([1]), {})])[0].cancel()
        for _ in range(rng.randrange(5)):
            batch.step()
    for _ in batch:
        pass
    return made


def active() -> int:
    gc.collect()
    mx.synchronize()
    return mx.get_active_memory()


@pytest.mark.parametrize("kind", ["full", "window"])
def test_soak(kind: str) -> None:
    rng = random.Random(11)
    batch = core.Batch(model(kind), max_rows=48, prefill_chunk=64, prefill_burst=256)
    run(batch, 50, rng)
    before = active()
    made = run(batch, REQUESTS // 2, rng)
    assert active() - before <= ALLOWED
    failed = 0
    for request, options in made:
        assert request.done
        if request.error is not None:
            assert isinstance(request.error, ProcessorError)
            assert options["processors"]
            failed += 1
        elif "temperature" not in options and "eos" not in options:
            check_alone(kind, request)
    assert failed
    assert batch._scheduler.waiting.nbytes == batch._scheduler.waiting.rows == 0
    for request, options in rng.sample([(r, o) for r, o in made if "temperature" in o and r.error is None], 40):
        told = {name: value for name, value in options.items() if name != "logprobs"}
        alone = list(core.generate_tokens(model(kind), request.prompt_ids, **told))
        assert request.result is not None
        found = request.result.token_ids
        assert found == alone[: len(found)]
        assert request.cancelled or len(found) == len(alone)
