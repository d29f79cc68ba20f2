"""Caches of several groups in one step, each row with as many tokens as it has: as each cache by itself."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
from core.errors import CacheError
from core.nn import Cache, Decoder
from core.nn.groups import CacheGroups
from tests.batching.models import CONFIG, model, prompt

CASES: list[tuple[str, dict[str, Any]]] = [
    ("full", {}),
    ("window", {}),
    ("beside", {}),
    ("experts", {}),
    ("packed", {}),
    ("full", {"max_kv_tokens": 12, "kept_tokens": 2}),
    ("wide", {"kv_bits": 8, "kv_group_size": 32}),
]


def filled(decoder: Decoder, lengths: list[int], settings: dict[str, Any]) -> Cache:
    """A cache of rows of these lengths."""
    cache = decoder.make_cache(len(lengths), **settings)
    if max(lengths):
        tokens = mx.array([prompt(i, max(lengths)) for i in range(len(lengths))])
        decoder.hidden_states(tokens, cache, lengths)
    mx.eval(cache.arrays())
    return cache


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=str)
def test_groups_are_as_each_by_itself(kind: str, settings: dict[str, Any]) -> None:
    """Two groups of rows that decode, and two prompts beside them, one of which is padded; then another such step."""
    wide = CONFIG | {"sliding_window": None, "head_dim": 32}
    decoder = core.build(wide).model if kind == "wide" else model(kind)
    caches = [filled(decoder, lengths, settings) for lengths in ([5, 9], [20], [0, 3])]
    twins = [cache.copy() for cache in caches]
    for seqs, counts in (([1, 1, 11], [None, None, [11, 6]]), ([1, 1, 7], [None, None, None])):
        tokens = [
            mx.array([prompt(10 * i + row, seq) for row in range(cache.batch)])
            for i, (cache, seq) in enumerate(zip(caches, seqs, strict=True))
        ]
        expected = [decoder(ids, twin, count) for ids, twin, count in zip(tokens, twins, counts, strict=True)]
        groups = CacheGroups(caches, seqs, counts)
        found = decoder(mx.concatenate([ids.flatten() for ids in tokens])[:, None], groups)
        first = 0
        for cache, twin, logits, count in zip(caches, twins, expected, counts, strict=True):
            rows, seq, vocabulary = logits.shape
            mine = found[first : first + rows * seq].reshape(rows, seq, vocabulary)
            first += rows * seq
            for row in range(rows):
                real = seq if count is None else count[row]
                np.testing.assert_allclose(
                    np.array(mine[row, :real]), np.array(logits[row, :real]), atol=2e-5, rtol=1e-4
                )
            assert cache.lengths == twin.lengths


def test_a_block_with_state_refuses_tokens_as_rows() -> None:
    decoder = model("recurrent")
    cache = decoder.make_cache(1)
    with pytest.raises(CacheError, match="keeps state"):
        decoder(mx.zeros((3, 1), dtype=mx.int32), CacheGroups([cache], [3]))


def test_tokens_must_fit_the_caches() -> None:
    decoder = model("full")
    with pytest.raises(CacheError, match=r"\[6, 1\] tokens"):
        decoder(mx.zeros((3, 2), dtype=mx.int32), CacheGroups([decoder.make_cache(3)], [2]))
