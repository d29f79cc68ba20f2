"""Loaded models compute what transformers computes: reference checkpoints, with and without a cache."""

from __future__ import annotations

from functools import cache as memoised
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import core
from core.kernels.device import cpu_sources
from tests.fixtures import oracle, oracles, reference
from tests.fixtures.variants import REMOVED, cast, variant

TOLERANCE = 1e-4
"""On logits of a scale of 6; the reference itself is within 4.8e-5 of float64."""

NATIVE_BOUND = {"BF16": 0.5, "F16": 0.1}
"""Worst measured: 0.385 for ``mistral_bf16``, 0.072 for ``mistral_swa8`` in float16."""

ORACLES = oracles()
PROMPTS = ("", "short_")


@memoised
def load(name: str) -> core.LanguageModel:
    return core.load(ORACLES[name], tokenizer=False, dtype=mx.float32)


def logits_of(lm: core.LanguageModel, ids: np.ndarray) -> np.ndarray:
    return np.array(lm.model(mx.array(ids)[None])[0].astype(mx.float32))


def cached_logits(lm: core.LanguageModel, ids: np.ndarray, chunk: int, cache: core.Cache | None = None) -> np.ndarray:
    """The same logits, the tokens given to one cache ``chunk`` at a time."""
    cache = cache or lm.make_cache()
    tokens = mx.array(ids)[None]
    pieces = [lm.model(tokens[:, start : start + chunk], cache=cache) for start in range(0, len(ids), chunk)]
    return np.array(mx.concatenate(pieces, axis=1)[0])


def check(path: Path) -> core.LanguageModel:
    """Logits, choices and continuations of one checkpoint, its weights upcast to float32."""
    lm = core.load(path, tokenizer=False, dtype=mx.float32)
    arrays = reference(path)
    for prompt in PROMPTS:
        ids, expected = arrays[f"{prompt}input_ids"], arrays[f"{prompt}logits"]
        logits = logits_of(lm, ids)
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)
        assert (logits.argmax(-1) == expected.argmax(-1)).all()
        continuation = arrays[f"{prompt}continuation"].tolist()
        assert list(core.generate_tokens(lm.model, ids.tolist(), max_tokens=len(continuation))) == continuation
    return lm


def test_there_are_reference_checkpoints() -> None:
    assert len(ORACLES) >= 7


@pytest.mark.parametrize("name", ORACLES)
def test_logits_and_greedy_continuations_are_transformers(name: str) -> None:
    check(ORACLES[name])


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", ORACLES)
def test_any_chunking_of_a_cached_sequence_gives_the_uncached_logits(name: str, prompt: str) -> None:
    """Prompt and continuation in one sequence: it runs past the window, and past the cache's wrap."""
    lm, arrays = load(name), reference(ORACLES[name])
    ids = np.concatenate([arrays[f"{prompt}input_ids"], arrays[f"{prompt}continuation"]])
    whole = logits_of(lm, ids)
    np.testing.assert_allclose(whole[-25:-1], arrays[f"{prompt}continuation_logits"], atol=TOLERANCE, rtol=0)
    window = lm.config.sliding_window or 8  # type: ignore[attr-defined]
    for chunk in sorted({len(ids), 1, 3, 7, window - 1, window, window + 1}):
        np.testing.assert_allclose(cached_logits(lm, ids, chunk), whole, atol=TOLERANCE, rtol=0, err_msg=f"{chunk=}")


@pytest.mark.parametrize("name", ["mistral_tied", "mistral_swa8", "mixtral_swa8", "mixtral_8e_top3"])
def test_a_ragged_batch_computes_what_its_rows_compute_alone(name: str) -> None:
    """Prompts of different lengths, right-padded, then decoded together: each row at its own position."""
    lm, arrays = load(name), reference(ORACLES[name])
    ids = np.concatenate([arrays["input_ids"], arrays["continuation"]])
    lengths, steps = [3, 19, 8, 1], 24  # with a window of 8: far below, past the wrap, exact, and a single token
    rows = [ids[start : start + length + steps] for start, length in enumerate(lengths)]
    alone = [logits_of(lm, row) for row in rows]

    padded = np.zeros((len(rows), max(lengths)), dtype=np.int32)
    for row, (tokens, length) in enumerate(zip(rows, lengths, strict=True)):
        padded[row, :length] = tokens[:length]
    cache = lm.make_cache(len(rows))
    prefill = np.array(lm.model(mx.array(padded), cache=cache, lengths=lengths))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(prefill[row, :length], alone[row][:length], atol=TOLERANCE, rtol=0)
    for step in range(steps):
        tokens = mx.array([[int(row[length + step])] for row, length in zip(rows, lengths, strict=True)])
        logits = np.array(lm.model(tokens, cache=cache))[:, 0]
        expected = [one[length + step] for one, length in zip(alone, lengths, strict=True)]
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0, err_msg=f"{step=}")
    assert cache.lengths == [length + steps for length in lengths]


@pytest.mark.parametrize("name", ["mistral_swa8", "mixtral_swa8"])
def test_padding_in_later_steps_leaves_no_trace(name: str) -> None:
    """Chunked prefill of a ragged batch: rows run out of tokens at different chunks, some have none in a step."""
    lm, arrays = load(name), reference(ORACLES[name])
    ids = np.concatenate([arrays["input_ids"], arrays["continuation"]])
    lengths = [30, 11, 4]
    rows = [ids[10 * start :][:length] for start, length in enumerate(lengths)]
    alone = [logits_of(lm, row) for row in rows]
    cache, chunk = lm.make_cache(len(rows)), 5
    for start in range(0, max(lengths), chunk):
        counts = [min(chunk, max(0, length - start)) for length in lengths]
        padded = np.zeros((len(rows), chunk), dtype=np.int32)
        for row, count in enumerate(counts):
            padded[row, :count] = rows[row][start : start + count]
        logits = np.array(lm.model(mx.array(padded), cache=cache, lengths=counts))
        for row, count in enumerate(counts):
            expected = alone[row][start : start + count]
            np.testing.assert_allclose(logits[row, :count], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", [name for name in ORACLES if name.endswith(("bf16", "f16"))])
def test_half_precision_stays_near_its_float32_self(name: str) -> None:
    lm, arrays = core.load(ORACLES[name], tokenizer=False), reference(ORACLES[name])
    assert lm.report.plan.compute_dtype == (mx.float32 if cpu_sources() else mx.bfloat16)
    for prompt in PROMPTS:
        logits = logits_of(lm, arrays[f"{prompt}input_ids"])
        np.testing.assert_allclose(logits, arrays[f"{prompt}logits"], atol=NATIVE_BOUND["BF16"], rtol=0)


def test_float16_stays_near_its_float32_self(tmp_path: Path) -> None:
    path = variant(
        oracle("mistral_swa8"), tmp_path, tensors=lambda found: {name: cast(t, "F16") for name, t in found.items()}
    )
    native, upcast = core.load(path, tokenizer=False), core.load(path, tokenizer=False, dtype=mx.float32)
    assert native.report.plan.compute_dtype == (mx.float32 if cpu_sources() else mx.float16)
    ids = reference(oracle("mistral_swa8"))["input_ids"]
    np.testing.assert_allclose(logits_of(native, ids), logits_of(upcast, ids), atol=NATIVE_BOUND["F16"], rtol=0)


NEW_ROPE = {"rope_theta": REMOVED, "rope_scaling": REMOVED}
SPELLINGS = {
    "rope_parameters": (
        "mistral_sharded",
        {**NEW_ROPE, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    ),
    "rope_scaling null": ("mistral_swa8", {"rope_scaling": None}),
    "rope_scaling default": ("mistral_swa8", {"rope_scaling": {"type": "default"}}),
    "theta by default": ("mistral_swa8", {"rope_theta": REMOVED}),
    "theta by default, mixtral": ("mixtral_8e_top3", {"rope_theta": REMOVED}),
    "rope_parameters, mixtral": ("mixtral_swa8", {**NEW_ROPE, "rope_parameters": {"rope_theta": 1e6}}),
    "head_dim null": ("mistral_swa8", {"head_dim": None}),
    "head_dim explicit": ("mistral_swa8", {"head_dim": 8}),
    "tie_word_embeddings absent": ("mistral_swa8", {"tie_word_embeddings": REMOVED}),
    "sliding_window absent": ("mistral_tied", {"sliding_window": REMOVED}),  # 4096: longer than the prompt
    "sliding_window absent, mixtral": ("mixtral_8e_top3", {"sliding_window": REMOVED}),
    "eps by default, mixtral": ("mixtral_swa8", {"rms_norm_eps": REMOVED}),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_spelling_of_the_config_is_the_same_model(spelling: str, tmp_path: Path) -> None:
    name, changes = SPELLINGS[spelling]
    path = variant(oracle(name), tmp_path, config=changes)
    (path / "reference.npz").symlink_to(oracle(name) / "reference.npz")
    check(path)


@pytest.mark.parametrize(("name", "shards"), [("mistral_tied", 3), ("mixtral_8e_top3", 4)])
def test_shards_may_cut_anywhere(name: str, shards: int, tmp_path: Path) -> None:
    """Tensors in turn over the shards: parts of one projection, and experts of one layer, come from several files."""
    path = variant(oracle(name), tmp_path, shards=shards)
    (path / "reference.npz").symlink_to(oracle(name) / "reference.npz")
    assert len(check(path).report.plan.entries) > 0
