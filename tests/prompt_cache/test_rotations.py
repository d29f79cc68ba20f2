"""Where rotary frequencies depend on the sequence's length, kept prompts give what fresh ones give."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
from core.errors import CacheError
from tests.batching.models import CONFIG, SCALINGS, VOCABULARY, prompt

LIMIT = 40


def scaled(kind: str) -> Any:
    mx.random.seed(3)
    length = LIMIT if kind == "dynamic" else 2 * LIMIT
    return core.build(CONFIG | {"rope_parameters": SCALINGS[kind], "max_position_embeddings": length}).model


def last_logits(model: Any, ids: list[int], cache: Any = None) -> np.ndarray:
    return np.array(model(mx.array([ids]), cache)[0, -1])


@pytest.mark.parametrize("kind", SCALINGS)
def test_prompts_of_all_lengths_after_one_another(kind: str) -> None:
    """Each is compared with itself without a cache, in which no key is older than the step."""
    model, whole = scaled(kind), prompt(7, 70)
    reused = 0
    for lengths in ((60, 20), (20, 60), (60, 41, 40, 39), (20, 30, 50, 40), (41, 70), (40, 41)):
        kept = core.PrefixCache(1 << 24)
        for length in lengths:
            ids = [*whole[: length - 1], length % VOCABULARY]
            cache, held = kept.fetch(ids, model.make_cache())
            reused += held
            found = last_logits(model, ids[held:], cache)
            np.testing.assert_allclose(found, last_logits(model, ids), atol=1e-4)
            # An answer, past the limit perhaps, is stored with its prompt.
            answer = [1, 2, 3, 4, 5, 6]
            for token in answer:
                model(mx.array([[token]]), cache)
            kept.store([*ids, *answer], cache)
    assert reused == 19 + 29 + 38, "within the limit, what was kept is used: of 30 after 20, 40 after 30, 39 after 40"


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_cache_does_not_go_back_within_the_limit(kind: str) -> None:
    """Unless no key that is left was rotated as beyond it."""
    model, whole = scaled(kind), prompt(7, 70)
    cache = model.make_cache()
    model(mx.array([whole[:60]]), cache)
    assert not cache.can_rewind(40)
    with pytest.raises(CacheError, match="rotated as in a sequence beyond 40"):
        cache.copy().rewind(40)
    cache.rewind(10)
    cache.rewind(50)  # nothing is left
    for start in (0, 15, 30):
        model(mx.array([whole[start : start + 15]]), cache)
    cache.rewind(15)
    np.testing.assert_allclose(last_logits(model, [5], cache), last_logits(model, [*whole[:30], 5]), atol=1e-4)
    assert cache.unstretched == 31
