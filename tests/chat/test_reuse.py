"""One cache for changing prompts: whatever it held, the next logits are those of the prompt alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core
from core.chat.reuse import Held
from tests.testing import recurrent

MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "full": (MISTRAL, None),
    "window": (MISTRAL | {"sliding_window": 8}, None),
    "state": (recurrent.CONFIG, recurrent.Recurrent()),
}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    mx.random.seed(3)
    built = {name: core.build(config, plugin=plugin).model for name, (config, plugin) in KINDS.items()}
    mx.eval([model.parameters() for model in built.values()])
    return built


def answer(model: Any, held: Held, prompt: list[int], count: int) -> tuple[int, np.ndarray]:
    """Processes what is new in a prompt and then ``count`` ids more; returns how many were new, and their logits."""
    cache, new = held.prepare(prompt)
    assert 1 <= len(new) <= len(prompt)
    assert cache.length == len(prompt) - len(new)
    logits = model(mx.array([new]), cache=cache)[0, -1]
    ids = [7] * count
    for token_id in ids[:-1]:
        model(mx.array([[token_id]]), cache=cache)
    held.extend([*new, *ids])
    assert held.ids == (prompt + ids)[: cache.length]
    return len(new), np.array(logits)


PROMPTS = st.lists(
    st.tuples(st.integers(0, 40), st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 5)),
    min_size=2,
    max_size=5,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(changes=PROMPTS)
def test_any_prompt_after_any_other(models: Any, kind: str, changes: list[Any]) -> None:
    """Each prompt keeps a beginning of what the cache holds, and goes on otherwise."""
    model = models[kind]
    held = Held(lambda: model.make_cache(1))
    for kept, rest, count in changes:
        prompt = held.ids[:kept] + rest
        _, logits = answer(model, held, prompt, count)
        np.testing.assert_allclose(logits, np.array(model(mx.array([prompt]))[0, -1]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_on_costs_only_what_is_new(models: Any, kind: str) -> None:
    model = models[kind]
    held = Held(lambda: model.make_cache(1))
    assert answer(model, held, list(range(1, 31)), 4)[0] == 30
    assert held.ids == [*range(1, 31), 7, 7, 7]
    assert answer(model, held, [*held.ids, 7, 9], 1)[0] == 2


def test_what_cannot_be_taken_back_is_processed_anew(models: Any) -> None:
    """A full cache goes back anywhere; a window as far as its spare tokens; a state not at all."""
    new = {}
    for kind, model in models.items():
        held = Held(lambda model=model: model.make_cache(1))  # type: ignore[misc]
        answer(model, held, [1] * 100, 4)
        new[kind] = answer(model, held, [*[1] * 60, 2], 1)[0]
    assert new == {"full": 1, "window": 61, "state": 61}


def test_the_same_prompt_again(models: Any) -> None:
    """The last id is processed again, or nobody would know what follows it."""
    held = Held(lambda: models["full"].make_cache(1))
    assert [answer(models["full"], held, [1, 2, 3], 1)[0] for _ in range(2)] == [3, 1]


def test_forgetting_frees_the_cache(models: Any) -> None:
    held = Held(lambda: models["full"].make_cache(1))
    answer(models["full"], held, [1, 2, 3], 1)
    held.forget()
    assert (held.cache, held.ids) == (None, [])
    assert answer(models["full"], held, [1, 2, 3], 1)[0] == 3
