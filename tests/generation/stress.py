"""Several threads that generate with one model at once, leave generations unfinished, and go on from snapshots."""

from __future__ import annotations

import random
import threading
import traceback
from typing import Any

import mlx.core as mx

from core.generation import generate_tokens

_PATIENCE = 120  # seconds; a thread that takes longer waits for something that will not come


def generate_in_threads(model: Any, expected: list[tuple[list[int], list[int]]], rounds: int) -> None:
    """One thread for each prompt and the ids that follow it, however it is generated.

    An ordinary step rounds otherwise than a fast one, and a snapshot makes the next step an ordinary one: ids may part
    where two logits are as near as that.

    MLX gives each thread a stream of its own, so the model must have been evaluated.
    """
    failures: list[str] = []

    def work(seed: int, prompt: list[int], ids: list[int]) -> None:
        try:
            for turn in range(rounds):
                _round(model, prompt, ids, random.Random(f"{seed} {turn}"))
        except BaseException:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(i, *pair), daemon=True) for i, pair in enumerate(expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE)
    assert not failures, failures[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def _round(model: Any, prompt: list[int], ids: list[int], draw: random.Random) -> None:
    cache = model.make_cache()
    stream = generate_tokens(model, prompt, max_tokens=len(ids), cache=cache)
    taken = draw.randint(1, len(ids) - 4)
    begun = [next(stream) for _ in range(taken)]
    _check(model, prompt, begun, ids[:taken])
    snapshot = cache.copy()
    more = [next(stream) for _ in range(draw.randint(0, 3))]
    _check(model, prompt, begun + more, ids[: taken + len(more)])
    if draw.random() < 0.5:
        stream.close()
        assert cache.length == len(prompt) + taken + len(more) - 1
    del stream, cache  # or abandoned as it is
    # The snapshot may hold the token that is being computed ahead.
    snapshot.rewind(snapshot.length - (len(prompt) + taken - 1))
    rest = list(generate_tokens(model, [begun[-1]], max_tokens=len(ids) - taken, cache=snapshot))
    assert len(rest) == len(ids) - taken
    _check(model, prompt, begun + rest, ids)


def _check(model: Any, prompt: list[int], found: list[int], expected: list[int]) -> None:
    """The same ids, up to a place where two are about as likely."""
    parted = next((place for place, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]), None)
    if parted is None:
        return
    logits = model(mx.array([prompt + expected[:parted]]))[0, -1].astype(mx.float32)
    one, other = logits[found[parted]].item(), logits[expected[parted]].item()
    spread = (mx.max(logits) - mx.mean(logits)).item()
    bound = (1e-5 if model(mx.array([[0]])).dtype == mx.float32 else 3e-2) * spread
    assert abs(one - other) <= bound, f"{found} instead of {expected}: logits {one} and {other} at {parted}"
