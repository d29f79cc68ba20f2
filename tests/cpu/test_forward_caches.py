"""Caches that the CPU library writes in place, in any history: copies, rewinds, rows, groups, files, steps of MLX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core
from core.kernels import inference, reference_only
from core.nn import Cache, CacheSpec
from core.nn.groups import CacheGroups
from core.prompt_cache.snapshot import beginning, snapshot
from tests.cpu.models import as_numbers, assert_same, by_library, by_mlx, decoder, needs_library, tokens

pytestmark = needs_library

FULL = decoder(layers=2, vocab_size=61)
SLIDING = decoder(layers=2, vocab_size=61, window=6)
KINDS: dict[str, tuple[Any, dict[str, int]]] = {
    "full": (FULL, {}),
    "window": (SLIDING, {}),
    "limit": (FULL, {"max_kv_tokens": 12, "kept_tokens": 2}),
    "limit without sinks": (FULL, {"max_kv_tokens": 5, "kept_tokens": 0}),
    "limit below the window": (SLIDING, {"max_kv_tokens": 5, "kept_tokens": 1}),
}
ACTIONS = ["step", "step", "chunk", "padded", "nothing", "mlx", "copy", "swap", "rewind", "arrays", "snapshot", "long"]


def assert_rows(found: np.ndarray, expected: np.ndarray, counts: list[int]) -> None:
    """Compares what is no padding."""
    for row, count in enumerate(counts):
        if count:
            assert_same(found[row, :count], expected[row, :count])


@settings(max_examples=40)
@given(
    kind=st.sampled_from(list(KINDS)),
    batch=st.integers(1, 3),
    actions=st.lists(st.sampled_from(ACTIONS), max_size=16),
    random=st.randoms(use_true_random=False),
)
def test_any_history_is_that_of_ordinary_steps(kind: str, batch: int, actions: list[str], random: Any) -> None:
    """Old copies are used later on, and what was given out is looked at in the end."""
    model, limits = KINDS[kind]
    pairs: list[tuple[Cache, Cache]] = [tuple(model.make_cache(batch, **limits) for _ in range(2))]  # type: ignore[list-item]
    held: list[tuple[mx.array, np.ndarray]] = []
    for seed, action in enumerate([*actions, "step", "swap", "step"]):
        ours, theirs = pairs[-1]
        if action == "copy":
            pairs.append((ours.copy(), theirs.copy()))
        elif action == "swap":
            pairs.insert(0, pairs.pop())
        elif action == "rewind":
            count = random.randint(0, 3)
            if theirs.can_rewind(count):
                assert ours.can_rewind(count)
                ours.rewind(count)
                theirs.rewind(count)
        elif action == "arrays":
            held += [(array[:], as_numbers(array)) for array in ours.arrays()]
        elif action == "snapshot":
            if batch == 1 and ours.length:
                length = ours.length
                pairs.append((beginning(snapshot(ours), length), beginning(snapshot(theirs), length)))
        else:
            count = {"step": 1, "mlx": random.randint(1, 9), "long": 40}.get(action, random.randint(2, 12))
            counts = [count] * batch
            if action == "padded":
                counts = [random.randint(0, count) for _ in range(batch)]
            elif action == "nothing":
                counts = [0] * batch
            lengths = counts if min(counts) < count else None
            ids = tokens(model, batch, count, seed)
            if action == "nothing":
                with inference():
                    model(ids, ours, lengths)
                found = expected = by_mlx(model, ids, theirs, lengths)
            else:
                found = (by_mlx if action == "mlx" else by_library)(model, ids, ours, lengths)
                expected = by_mlx(model, ids, theirs, lengths)
            assert ours.lengths == theirs.lengths
            assert_rows(found, expected, counts)
    for array, numbers in held:
        np.testing.assert_array_equal(as_numbers(array), numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_beside_rows_that_decode(kind: str) -> None:
    """Groups: two caches of several rows, and a padded prompt of two rows, in one pass."""
    model, limits = KINDS[kind]
    caches = [[model.make_cache(rows, **limits) for rows in (2, 1, 2)] for _ in range(2)]
    for seed, (ours, theirs) in enumerate(zip(*caches, strict=True)):
        ids = tokens(model, ours.batch, 9 + 5 * seed, seed)
        lengths = [7, 4][: ours.batch]
        by_library(model, ids, ours, lengths)
        by_mlx(model, ids, theirs, lengths)
    for seed in range(4):
        seqs, counts = [1, 1, 8], [None, None, [8, 3 + seed]]
        ids = tokens(model, 2 + 1 + 16, 1, seed)
        found = by_library(model, ids, CacheGroups(caches[0], seqs, counts))
        expected = by_mlx(model, ids, CacheGroups(caches[1], seqs, counts))
        real = [*range(11), *range(11, 11 + 3 + seed)]
        assert_same(found[real], expected[real])


@pytest.mark.parametrize("pad", [0, 300])
def test_a_step_of_padding_alone_keeps_the_cache_in_order(pad: int) -> None:
    """The buffers grow with what the step has asked for, although it writes nothing."""
    caches = FULL.make_cache(), FULL.make_cache()
    for seed, count in enumerate([pad, 5] if pad else [5]):
        with inference():
            FULL(tokens(FULL, 1, count, seed), caches[0], [0])
        with inference(), reference_only():
            FULL(tokens(FULL, 1, count, seed), caches[1], [0])
    for seed in range(3):
        ids = tokens(FULL, 1, 130, seed)
        assert_same(by_library(FULL, ids, caches[0]), by_mlx(FULL, ids, caches[1]))


def test_results_are_the_callers() -> None:
    """Logits and hidden states of a step do not change when others run."""
    cache = FULL.make_cache()
    kept: list[tuple[mx.array, np.ndarray]] = []
    for seed in range(6):
        with inference():
            hidden = FULL.hidden_states(tokens(FULL, 1, 1 + 3 * (seed % 2), seed), cache)
            logits = FULL.head(hidden)
        kept += [(array, as_numbers(array)) for array in (hidden, logits, logits[:, -1])]
    for array, numbers in kept:
        np.testing.assert_array_equal(as_numbers(array), numbers)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_a_cache_of_another_type_is_mlxs(dtype: mx.Dtype) -> None:
    """A step of MLX with weights of two bytes has written it."""
    model = decoder()
    model.set_dtype(dtype)
    caches = model.make_cache(), model.make_cache()
    ids = tokens(model, 1, 5)
    for cache in caches:
        by_mlx(model, ids, cache)
    with inference():
        found = as_numbers(model(ids, caches[0]))
    np.testing.assert_array_equal(found, by_mlx(model, ids, caches[1]))
    assert {array.dtype for array in caches[0].arrays()} == {dtype}


def test_mlx_continues_what_the_library_began_in_float32() -> None:
    model = decoder()
    model.set_dtype(mx.bfloat16)
    cache, plain = model.make_cache(), model.make_cache()
    by_library(model, tokens(model, 1, 5), cache)
    by_mlx(model, tokens(model, 1, 5), plain)
    for seed in range(3):
        ids = tokens(model, 1, 1 + seed, seed)
        assert_same(by_mlx(model, ids, cache), by_mlx(model, ids, plain), 5e-2)


def test_packed_caches_and_no_cache_are_mlxs() -> None:
    model = decoder(head_dim=32, layers=1)
    ids = tokens(model, 1, 9)
    with inference():
        found = as_numbers(model(ids, model.make_cache(kv_bits=8, kv_group_size=32)))
        alone = as_numbers(model(ids))
    np.testing.assert_allclose(found, by_mlx(model, ids, model.make_cache(kv_bits=8, kv_group_size=32)), atol=1e-4)
    assert_same(alone, by_mlx(model, ids, model.make_cache()))


def test_a_cache_goes_through_a_file(tmp_path: Path) -> None:
    lm = core.load("demo:mistral", tokenizer=False, dtype="float32")
    ids = tokens(lm.model, 1, 20)
    cache, plain = lm.make_cache(), lm.make_cache()
    by_library(lm.model, ids, cache)
    by_mlx(lm.model, ids, plain)
    core.save_cache(tmp_path / "cache", cache, lm, ids[0].tolist())
    loaded, held = core.load_cache(tmp_path / "cache", lm)
    assert held == ids[0].tolist()
    more = tokens(lm.model, 1, 4, 1)
    expected = by_mlx(lm.model, more, plain)
    assert_same(by_library(lm.model, more, loaded), expected)
    assert_same(by_library(lm.model, more, cache), expected)


def test_a_spec_of_other_heads_is_mlxs() -> None:
    """MLX allocates by what is written, the library by what the spec says."""
    model = decoder(layers=1)
    model.set_cache_specs([CacheSpec.full(1, 8)])
    ids = tokens(model, 1, 5)
    with inference():
        found = as_numbers(model(ids, model.make_cache()))
    assert_same(found, by_mlx(model, ids, model.make_cache()))
