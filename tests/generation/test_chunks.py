"""How many tokens of a prompt are read at once."""

from __future__ import annotations

import gc

import mlx.nn as nn
import pytest

import core
from core.generation import chunks
from core.generation.chunks import ChunkSize


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "backend", lambda: "cpu")


def test_a_chunk_takes_about_as_long_as_it_may(cpu: None) -> None:
    size = ChunkSize(2048)
    assert size.tokens == 64
    for _ in range(4):
        size.took(size.tokens, size.tokens / 1000)  # 1,000 tokens a second
    assert size.tokens == 700


def test_a_chunk_has_no_more_than_asked_and_at_least_a_few(cpu: None) -> None:
    size = ChunkSize(100)
    size.took(64, 1e-4)
    assert size.tokens == 100
    size.took(64, 1000.0)
    assert size.tokens == 8


def test_one_chunk_is_not_much_larger_than_the_one_before(cpu: None) -> None:
    size = ChunkSize(2048)
    size.took(8, 1e-4)
    assert size.tokens == 64


def test_elsewhere_and_where_the_end_of_a_chunk_matters_the_size_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "backend", lambda: "cuda")
    sizes = [ChunkSize(2048)]
    monkeypatch.setattr(chunks, "backend", lambda: "cpu")
    sizes.append(ChunkSize(2048, fixed=True))
    for size in sizes:
        size.took(2048, 100.0)
        assert size.tokens == 2048


def test_answers_do_not_depend_on_the_chunks() -> None:
    lm = core.load("demo:mistral")
    prompt = lm.encode("To be, or not to be, that is the question: " * 12)
    ids = [list(core.generate_tokens(lm.model, prompt, max_tokens=8, prefill_chunk=chunk)) for chunk in (16, 100, 4096)]
    assert ids[0] == ids[1] == ids[2]


def test_the_next_prompt_of_a_model_starts_at_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "backend", lambda: "cpu")
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    size = ChunkSize(2048, model)
    assert size.tokens == 64
    size.took(64, 0.064)
    assert ChunkSize(2048, model).tokens == 700
    assert ChunkSize(500, model).tokens == 500
    assert ChunkSize(2048, other).tokens == ChunkSize(2048).tokens == 64
    size.took(512, 700)
    assert ChunkSize(2048, model).tokens == 8
    before = len(chunks._speeds)
    del size, model
    gc.collect()
    assert len(chunks._speeds) == before - 1
