"""The fast step on a real device, against the ordinary path."""

from __future__ import annotations

import mlx.core as mx
import pytest

from core.fast import fast_step, reason
from core.generation import generate_tokens
from core.kernels import reference_only
from tests.generation.stress import generate_in_threads

from .models import build, filled

HAS_CUDA = mx.cuda.is_available() and mx.default_device().type == mx.gpu
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")]


def distance(a: mx.array, b: mx.array) -> float:
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return (mx.linalg.norm(a - b) / mx.linalg.norm(b)).item()


def step_for(model, cache):
    assert reason(model, cache) is None
    step = fast_step(model, cache)
    assert step is not None
    return step


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": None},
        {"head_dim": 128, "num_attention_heads": 16},
        {"sliding_window": None, "tie_word_embeddings": True},
        {"intermediate_size": 1536, "vocab_size": 2016},
        {"model_type": "mixtral"},
    ],
    ids=str,
)
def test_logits_through_growth_and_windows(bits: int, changes: dict) -> None:
    model = build(bits=bits, **changes)
    cache = filled(model, 40)
    twin = cache.copy()
    step = step_for(model, cache)
    errors = []
    for i in range(300):  # past a full cache's growth at 256, and a window cache's slides
        token = mx.array([(91 * i + 7) % 1024], dtype=mx.uint32)
        errors.append(distance(step(token), model(token[None], twin)[:, -1]))
    step.close()
    assert cache.lengths == twin.lengths
    # With random weights a router's near tie goes either way now and then; the next tokens are near again.
    limit = 0.05
    assert sorted(errors)[len(errors) * 9 // 10] < limit
    if "model_type" not in changes:
        assert max(errors) < limit
    tokens = mx.array([[3, 4, 5]])
    if "model_type" not in changes:
        assert distance(model(tokens, cache), model(tokens, twin)) < limit


@pytest.mark.parametrize("bits", [4, 16])
def test_generation_takes_what_the_ordinary_path_would(bits: int) -> None:
    model = build(bits=bits)
    cache = model.make_cache()
    prompt = [1, 2, 3]
    ids = list(generate_tokens(model, prompt, max_tokens=48, cache=cache))
    assert cache.lengths == [len(prompt) + len(ids) - 1]
    with reference_only():
        logits = model(mx.array([prompt + ids[:-1]]))[0, len(prompt) - 1 :].astype(mx.float32)
    taken = mx.take_along_axis(logits, mx.array(ids)[:, None], axis=-1)[:, 0]
    # Random weights have near ties; what is taken must be within rounding of the largest.
    assert (logits.max(axis=-1) - taken).max().item() < 0.1 * logits.std().item()


def test_an_abandoned_generation_and_a_snapshot_within_one() -> None:
    model = build(bits=4, sliding_window=None)
    cache = model.make_cache()
    stream = generate_tokens(model, [1, 2, 3], max_tokens=64, cache=cache)
    ids = [next(stream) for _ in range(10)]
    snapshot = cache.copy()
    held = snapshot.length
    ids += [next(stream) for _ in range(10)]
    stream.close()
    assert cache.length == 3 + 19
    # The snapshot still holds what it held: continue both from the same place.
    cache.rewind(cache.length - 12)
    snapshot.rewind(held - 12)
    token = mx.array([[ids[9]]])
    assert distance(model(token, snapshot), model(token, cache)) < 1e-6


def test_two_streams_in_turns() -> None:
    model = build(bits=4)
    alone = [list(generate_tokens(model, [start, 2, 3], max_tokens=30)) for start in (1, 9)]
    streams = [generate_tokens(model, [start, 2, 3], max_tokens=30) for start in (1, 9)]
    together: list[list[int]] = [[], []]
    for _ in range(30):
        for ids, stream in zip(together, streams, strict=True):
            ids.append(next(stream))
    assert together == alone


def test_several_sequences_at_their_own_positions() -> None:
    model = build(bits=4, sliding_window=None)
    cache = model.make_cache(2)
    tokens = mx.array([[5, 6, 7, 8], [9, 10, 11, 0]])
    mx.eval(model.hidden_states(tokens, cache, lengths=[4, 3]), cache.arrays())
    twin = cache.copy()
    step = step_for(model, cache)
    for i in range(6):
        token = mx.array([i + 20, i + 50], dtype=mx.uint32)
        assert distance(step(token), model(token[:, None], twin)[:, -1]) < 0.05
    step.close()


def test_reference_only_switches_it_off() -> None:
    model = build()
    cache = filled(model, 2)
    with reference_only():
        assert fast_step(model, cache) is None


@pytest.mark.parametrize("changes", [{"sliding_window": None}, {}], ids=["full", "window"])
def test_two_threads_snapshots_and_abandoned_generations_on_the_fast_step(changes: dict) -> None:
    model = build(bits=4, **changes)
    prompts = [[1, 2, 3], [9, 8, 7, 6, 5]]
    cache = model.make_cache()
    list(generate_tokens(model, prompts[0], max_tokens=1, cache=cache))
    assert reason(model, cache) is None
    alone = [list(generate_tokens(model, prompt, max_tokens=40)) for prompt in prompts]
    generate_in_threads(model, list(zip(prompts, alone, strict=True)), rounds=8)
