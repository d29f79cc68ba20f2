"""Whole models with cache settings: built-in ones, a window past its wrap, a third party's, quantized ones, a state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
from core.errors import UsageError
from core.nn import Decoder
from core.nn.step import StepPlan
from tests.prompt_cache.kinds import MISTRAL, recurrent
from tests.testing.recurrent import CONFIG as RECURRENT

ROOT = Path(__file__).parents[2]
TOKENS = mx.array(np.random.default_rng(3).integers(0, 60, (2, 90)))
LIMIT, KEPT = 20, 4
CHUNKS = ([90], [1, 49, *[1] * 25, 15])
NAMES = ["demo:mistral", "demo:mixtral", "window", "full", "olmo2"]


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Iterator[Decoder]:
    """Quantized demos with a window of 64, tiny ones with and without a window of 8, and the example plugin's."""
    name: str = request.param
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "examples" / "corelm-olmo2")
        mx.random.seed(5)
        if name.startswith("demo:"):
            built = core.load(name, tokenizer=False, dtype=mx.float32).model
        elif name == "olmo2":
            reference = ROOT / "examples" / "corelm-olmo2" / "tests" / "reference"
            built = core.load(reference, plugin="corelm_olmo2", tokenizer=False, dtype=mx.float32).model
        else:
            built = core.build(MISTRAL | {"sliding_window": 8 if name == "window" else None}).model
        yield built


def without_a_cache(model: Decoder, tokens: mx.array, monkeypatch: pytest.MonkeyPatch) -> mx.array:
    """Logits from plain attention with the rule as a mask."""
    query, key = np.mgrid[: tokens.shape[1], : tokens.shape[1]]

    def view(plan: StepPlan, reach: object, window: int | None) -> Any:
        if window is not None and window <= LIMIT:
            seen = key > query - window
        else:
            seen = (key < KEPT) | (key > query - (LIMIT - KEPT))
        return SimpleNamespace(mask=mx.array(seen & (key <= query)))

    with monkeypatch.context() as patched:
        patched.setattr(StepPlan, "view", view)
        return model(tokens)


def chunked(model: Decoder, tokens: mx.array, chunks: list[int], **asked: Any) -> mx.array:
    cache, parts, start = model.make_cache(tokens.shape[0], **asked), [], 0
    for chunk in chunks:
        parts.append(model(tokens[:, start : start + chunk], cache))
        start += chunk
    assert start == tokens.shape[1]
    return mx.concatenate(parts, axis=1)


def assert_close(one: mx.array, other: mx.array) -> None:
    np.testing.assert_allclose(np.array(one), np.array(other), atol=2e-4, rtol=1e-4)


def test_a_limit_is_a_mask_however_the_tokens_arrive(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = without_a_cache(model, TOKENS, monkeypatch)
    asked = {"max_kv_tokens": LIMIT, "kept_tokens": KEPT}
    for chunks in CHUNKS:
        assert_close(chunked(model, TOKENS[:1], chunks, **asked), expected[:1])
    cache = model.make_cache(2, **asked)
    lengths = [60, 3]
    ragged = model(TOKENS[:, :60], cache, lengths)
    rest = mx.stack([TOKENS[row, length : length + 30] for row, length in enumerate(lengths)])
    following = model(rest, cache)
    for row, length in enumerate(lengths):
        assert_close(ragged[row, :length], expected[row, :length])
        assert_close(following[row], expected[row, length : length + 30])


def test_a_limit_that_is_not_reached_changes_nothing(model: Decoder) -> None:
    plain, limited = (chunked(model, TOKENS[:, :20], [15, 1, 4], **asked) for asked in ({}, {"max_kv_tokens": 20}))
    assert mx.array_equal(plain, limited)


@pytest.mark.parametrize("asked", [{}, {"max_kv_tokens": LIMIT}], ids=["", "limit"])
def test_packed_keys_do_not_depend_on_how_the_tokens_arrive(model: Decoder, asked: dict[str, int]) -> None:
    asked = asked | {"kv_bits": 8, "kv_group_size": 32}
    if model.layers[0].self_attn.head_dim % 32:
        with pytest.raises(UsageError, match=r"head_dim does not divide into groups .*found 16.\n  No group size"):
            model.make_cache(**asked)
        return
    whole, *others = (chunked(model, TOKENS[:1], chunks, **asked) for chunks in CHUNKS)
    floats = chunked(model, TOKENS[:1], CHUNKS[0], **{key: asked[key] for key in asked if not key.startswith("kv_")})

    def apart(one: mx.array, other: mx.array) -> float:
        """The median: where rounding moves a key to the next level, a router may choose another expert."""
        return float(mx.median(mx.abs(mx.softmax(one, axis=-1) - mx.softmax(other, axis=-1)).max(axis=-1)).item())

    assert max(apart(other, whole) for other in others) < apart(floats, whole) < 0.02


def test_a_states_model_takes_the_settings_and_ignores_them() -> None:
    with recurrent():
        model = core.build(RECURRENT).model
    plain = chunked(model, TOKENS, CHUNKS[1])
    asked = {"max_kv_tokens": LIMIT, "kv_bits": 4, "kv_group_size": 32}
    assert mx.array_equal(chunked(model, TOKENS, CHUNKS[1], **asked), plain)
    assert list(core.generate_tokens(model, [1, 2, 3], max_tokens=5, cache=model.make_cache(**asked))) == list(
        core.generate_tokens(model, [1, 2, 3], max_tokens=5)
    )


def test_the_token_loop_goes_on_past_the_limit(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = TOKENS[0, :30].tolist()
    cache = model.make_cache(max_kv_tokens=LIMIT)
    ids = list(core.generate_tokens(model, prompt, max_tokens=12, cache=cache, prefill_chunk=7))
    logits = without_a_cache(model, mx.array([prompt + ids]), monkeypatch)
    assert mx.argmax(logits[0, 29:-1], axis=-1).tolist() == ids
