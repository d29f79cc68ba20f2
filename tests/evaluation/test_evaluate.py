"""``core.evaluate``: transformers' figures, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
from core.errors import EvaluationError, TokenizerError, UsageError
from core.evaluation.result import divergence_of, mean_and_error, perplexity_of
from core.evaluation.scores import score_tokens
from core.evaluation.windows import plan_windows
from tests.fixtures import STORIES, oracle
from tests.fixtures.variants import Tensor, Tensors, variant

REFERENCE: dict[str, Any] = json.loads((Path(__file__).parent / "transformers_perplexity.json").read_text())
CORPUS = Path(core.__file__).parents[1] / "examples" / "corpus" / "tinyshakespeare.txt"
TEXT = CORPUS.read_bytes().decode()[: REFERENCE["characters"]]
RUNS = [(name, run) for name, runs in REFERENCE["models"].items() for run in runs]
IDS = REFERENCE["random_ids"]


@cache
def load(name: str) -> core.LanguageModel:
    if name == "stories":
        return core.load(STORIES)
    return core.load(oracle(name), tokenizer=False, dtype=mx.float32)


@pytest.mark.parametrize(("name", "run"), RUNS, ids=[f"{n}-{r['context']}-{r['stride']}" for n, r in RUNS])
def test_the_figures_are_those_of_the_recipe(name: str, run: dict[str, Any]) -> None:
    text = TEXT if name == "stories" else IDS
    found = core.evaluate(load(name), text, context=run["context"], stride=run["stride"])
    assert (found.tokens, found.windows) == (run["tokens"], len(run["windows"]))
    assert found.nats_per_token == pytest.approx(run["nats_per_token"], abs=2e-6)
    assert found.perplexity == pytest.approx(math.exp(run["nats_per_token"]), rel=2e-6)


def test_every_token_and_the_recipes_own_average() -> None:
    lm = load("stories")
    (run,) = (run for run in REFERENCE["models"]["stories"] if "losses" in run)
    ids, windows = lm.encode(TEXT), list(plan_windows(run["tokens"] + 1, run["context"], run["stride"]))
    assert ids == REFERENCE["stories_ids"]
    assert [[w.start, w.stop, w.scored] for w in windows] == [window[:3] for window in run["windows"]]
    parts = score_tokens(lm.model, ids, iter(windows), vocab_size=512)
    losses = list(itertools.chain.from_iterable(part.losses for part in parts))
    np.testing.assert_allclose(losses, run["losses"], atol=3e-5, rtol=0)
    # The recipe's average weighs a window of n scored tokens by n - 1 wherever a label is masked.
    rest = iter(losses)
    means = [float(np.mean(list(itertools.islice(rest, w.scored)))) for w in windows]
    np.testing.assert_allclose(means, [window[3] for window in run["windows"]], atol=2e-5, rtol=0)
    weights = [w.scored - (w.start > 0) for w in windows]
    assert np.average(means, weights=weights) == pytest.approx(run["recipe_nats"], abs=5e-6)


def test_divergences_are_those_of_transformers() -> None:
    run = REFERENCE["divergence"]
    values = run["values"]
    found = core.evaluate(load(run["model"]), IDS, against=load(run["reference"]), context=300).divergence
    assert found is not None
    figures = [found.mean, found.median, found.p95, found.p99, found.max]
    np.testing.assert_allclose(figures, [np.mean(values), *np.percentile(values, [50, 95, 99, 100])], rtol=5e-6)


def test_a_model_against_itself() -> None:
    lm = load("stories")
    found = core.evaluate(lm, TEXT, against=lm, max_tokens=80)
    assert found.divergence is not None
    assert found.divergence.max < 1e-6
    assert found.divergence.top1_agreement == 1
    assert found.divergence.reference == found.model


def test_uniform_predictions(tmp_path: Path) -> None:
    def without_head(tensors: Tensors) -> Tensors:
        head = tensors["lm_head.weight"]
        return tensors | {"lm_head.weight": Tensor(head.dtype, head.shape, bytes(len(head.data)))}

    lm = core.load(variant(oracle("mistral_swa8"), tmp_path, tensors=without_head), tokenizer=False)
    found = core.evaluate(lm, IDS, context=16)
    assert found.perplexity == pytest.approx(256, rel=1e-6)
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    assert found.bits_per_byte is None


def test_bits_per_byte_counts_the_bytes_that_were_scored() -> None:
    lm = load("stories")
    text = "Émile — said the 猫, “no”."
    found = core.evaluate(lm, text)
    size = len(text.encode())
    assert found.bytes == size
    assert found.bits_per_byte == pytest.approx(found.nats_per_token * found.tokens / math.log(2) / size)
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    ids, ends = tokenizer.encode_with_ends(text)
    assert (ids, ends[0], ends[-1]) == (tokenizer.encode(text), 0, len(text))
    assert ends == sorted(ends)
    part = core.evaluate(lm, text, max_tokens=5)
    assert (part.tokens, part.bytes) == (4, len(text[: ends[4]].encode()))


def test_the_summary_and_the_progress() -> None:
    calls: list[tuple[int, int]] = []
    found = core.evaluate(load("stories"), TEXT, max_tokens=100, context=40, progress=lambda *call: calls.append(call))
    assert (found.context, found.stride, found.tokens) == (40, 20, 99)
    assert calls[-1] == (99, 99)
    assert calls == sorted(calls)
    assert (found.model.quantization, found.model.compute_dtype) == ("none", "float32")
    demo = core.evaluate(core.load("demo:mixtral"), "To be", context=2048)
    assert (demo.model.quantization, demo.stride) == ("4-bit, groups of 64", 1024)


def test_the_text_is_too_short() -> None:
    lm = load("stories")
    with pytest.raises(EvaluationError, match="nothing comes before"):
        core.evaluate(lm, "")  # BOS alone
    with pytest.raises(EvaluationError, match="empty"):
        core.evaluate(lm, [])
    with pytest.raises(EvaluationError, match="found 1"):
        core.evaluate(lm, [1])
    assert core.evaluate(lm, [1, 400]).standard_error is None


def test_what_is_refused(tmp_path: Path) -> None:
    lm, tied = load("stories"), load("mistral_tied")
    with pytest.raises(EvaluationError, match=r"512 and 256 tokens[\s\S]*bits per byte"):
        core.evaluate(lm, TEXT, against=tied)
    with pytest.raises(TokenizerError, match="without a tokenizer"):
        core.evaluate(tied, TEXT)
    with pytest.raises(EvaluationError, match="token id 256"):
        core.evaluate(tied, [1, 256])
    with pytest.raises(UsageError, match="made for"):
        core.evaluate(lm, TEXT, context=513)

    def broken(tensors: Tensors) -> Tensors:
        norm = tensors["model.norm.weight"]
        return tensors | {"model.norm.weight": Tensor.of(norm.floats * np.float32("nan"), "F32")}

    nan = core.load(variant(oracle("mistral_tied"), tmp_path, tensors=broken), tokenizer=False, check_finite=False)
    with pytest.raises(EvaluationError, match="NaN"):
        core.evaluate(nan, [1, 2, 3])


def test_tokenizers_that_differ(tmp_path: Path) -> None:
    lm = load("stories")
    renamed = variant(STORIES, tmp_path / "renamed")
    tokenizer = json.loads((renamed / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    one, two = list(vocab)[-2:]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (renamed / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(EvaluationError, match="different names"):
        core.evaluate(lm, TEXT, against=core.load(renamed))
    without_bos = variant(STORIES, tmp_path / "without_bos")
    (without_bos / "tokenizer_config.json").write_text(
        json.dumps(json.loads((STORIES / "tokenizer_config.json").read_text()) | {"add_bos_token": False})
    )
    with pytest.raises(EvaluationError, match="cut the text"):
        core.evaluate(lm, TEXT, against=core.load(without_bos))


def test_statistics() -> None:
    values = np.random.default_rng(0).exponential(size=1000)
    mean, error = mean_and_error(values.tolist())
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(1000))
    model = core.evaluate(load("stories"), [1, 2]).model
    for count in (1, 2, 101, 1000):
        found = divergence_of(values[:count].tolist(), count, model)
        expected = np.percentile(values[:count], [50, 95, 99, 100])
        np.testing.assert_allclose([found.median, found.p95, found.p99, found.max], expected)
    assert perplexity_of(1e4) == math.inf
