"""Several threads that generate with one model at once, leave generations unfinished, and go on from snapshots."""

from __future__ import annotations

import random
import threading
import traceback
from typing import Any

from core.generation import generate_tokens

_PATIENCE = 120  # seconds; a thread that takes longer waits for something that will not come


def generate_in_threads(model: Any, expected: list[tuple[list[int], list[int]]], rounds: int) -> None:
    """One thread for each prompt and the ids that follow it, however it is generated.

    MLX gives each thread a stream of its own, so the model must have been evaluated.
    """
    failures: list[str] = []
    # What follows a cache that was left after so many ids, alone: its first step is an ordinary one, which rounds
    # otherwise than a fast one, so that in bfloat16 other ids may follow than in one go.
    after = [{taken: _continued(model, prompt, ids, taken) for taken in _places(ids)} for prompt, ids in expected]

    def work(seed: int, prompt: list[int], ids: list[int]) -> None:
        try:
            for turn in range(rounds):
                _round(model, prompt, ids, after[seed], random.Random(f"{seed} {turn}"))
        except BaseException:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(i, *pair), daemon=True) for i, pair in enumerate(expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE)
    assert not failures, failures[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def _places(ids: list[int]) -> range:
    return range(1, len(ids) - 3)


def _continued(model: Any, prompt: list[int], ids: list[int], taken: int) -> list[int]:
    cache = model.make_cache()
    assert list(generate_tokens(model, prompt, max_tokens=taken, cache=cache)) == ids[:taken]
    return list(generate_tokens(model, [ids[taken - 1]], max_tokens=len(ids) - taken, cache=cache))


def _round(model: Any, prompt: list[int], ids: list[int], after: dict[int, list[int]], draw: random.Random) -> None:
    cache = model.make_cache()
    stream = generate_tokens(model, prompt, max_tokens=len(ids), cache=cache)
    taken = draw.choice(_places(ids))
    assert [next(stream) for _ in range(taken)] == ids[:taken]
    snapshot = cache.copy()
    more = draw.randint(0, 3)
    assert [next(stream) for _ in range(more)] == ids[taken : taken + more]
    if draw.random() < 0.5:
        stream.close()
        assert cache.length == len(prompt) + taken + more - 1
    del stream, cache  # or abandoned as it is
    # The snapshot may hold the token that is being computed ahead.
    snapshot.rewind(snapshot.length - (len(prompt) + taken - 1))
    rest = generate_tokens(model, [ids[taken - 1]], max_tokens=len(ids) - taken, cache=snapshot)
    assert list(rest) == after[taken]
