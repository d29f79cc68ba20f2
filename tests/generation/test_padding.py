"""Prompts that are padded to a grid generate what unpadded ones do."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import core
import core.generation.padding as padding
from core.generation import generate_tokens
from core.generation.padding import GRID, chunk_length, padded_length
from core.nn import Cache, Decoder


@pytest.fixture(params=["demo:mistral", "demo:mixtral"], scope="module")
def model(request: pytest.FixtureRequest) -> Decoder:
    return core.load(request.param, dtype=mx.float32, tokenizer=False).model


def test_only_cuda_pads(model: Decoder) -> None:
    assert padded_length(model, 0, 10) == (GRID if mx.cuda.is_available() else 10)


@pytest.mark.parametrize("count", [1, 5, 63, 64, 65, 150])
@pytest.mark.parametrize("held", [0, 7])
def test_a_padded_prompt_is_the_prompt(model: Decoder, count: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the demo's window too; and the cache holds the same afterwards."""
    before, ids = [3 + i % 90 for i in range(held)], [5 + (7 * i) % 200 for i in range(count)]
    found = []
    for pads in (False, True):
        monkeypatch.setattr(padding, "_pads", lambda model, pads=pads: pads)
        cache = model.make_cache()
        if before:
            model(mx.array([before]), cache)
        tokens = list(generate_tokens(model, ids, max_tokens=8, cache=cache, prefill_chunk=96))
        assert cache.length == held + count + 7
        found.append((tokens, np.array(model(mx.array([[9]]), cache))))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-4)


def test_shapes_repeat(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the prompt's length, keys and queries come in multiples of the grid."""
    monkeypatch.setattr(padding, "_pads", lambda model: True)
    shapes = set()
    whole = Decoder.hidden_states

    def watched(self, tokens: mx.array, cache: Cache, lengths: list[int] | None = None) -> mx.array:
        if tokens.shape[1] > 1:
            shapes.add((tokens.shape[1], cache.length + tokens.shape[1]))
        return whole(self, tokens, cache, lengths)

    monkeypatch.setattr(Decoder, "hidden_states", watched)
    for count in (5, 20, 63, 64, 100, 127):
        list(generate_tokens(model, list(range(3, 3 + count)), max_tokens=2, prefill_chunk=96))
    assert shapes == {(64, 64), (64, 128)}


def test_chunks_end_on_the_grid() -> None:
    held, left, ends = 10, 700, []
    while left:
        size = chunk_length(held, left, 200)
        held, left = held + size, left - size
        ends.append(held)
    assert ends == [192, 384, 576, 710]
    assert chunk_length(0, 100, 3) == 3  # smaller than the grid
