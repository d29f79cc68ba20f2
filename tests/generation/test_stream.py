"""``LanguageModel.stream``: settings reach every model, text stops where it should, and results say what happened."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
from core.config.context import context_length
from core.errors import ProcessorError, TokenizerError, UsageError
from core.generation import Chooser, ProcessorContext, Sampling
from tests.generation.conftest import CONFIG
from tests.text.test_stops import search

OLMO2 = Path(__file__).parents[2] / "examples/corelm-olmo2"
PROMPT = "Enter the KING and his"
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "truncated": {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.98, "seed": 1},
    "xtc": {"temperature": 1.2, "xtc_probability": 0.7, "xtc_threshold": 0.03, "seed": 2},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.3, "penalty_context": 12},
    "more penalties": {"temperature": 0.7, "presence_penalty": 1.0, "frequency_penalty": 0.5, "seed": 3},
    "dry": {"temperature": 0.0, "dry_multiplier": 2.0, "dry_allowed_length": 1, "dry_breakers": [7], "dry_context": 20},
    "bias": {"temperature": 0.0, "logit_bias": {13: 4.0, 14: -np.inf}},
}


def forbid_evens(logits: mx.array, context: ProcessorContext) -> mx.array:
    return mx.where(mx.arange(logits.shape[1]) % 2 == 0, -mx.inf, logits)


SETTINGS["processor"] = {"temperature": 0.5, "processors": [forbid_evens], "seed": 4}


@pytest.fixture(scope="module", params=["demo:mistral", "demo:mixtral", "olmo2"])
def lm(request: pytest.FixtureRequest) -> core.LanguageModel:
    return load(request.param)


@pytest.fixture(scope="module")
def mistral() -> core.LanguageModel:
    return load("demo:mistral")


def load(name: str) -> core.LanguageModel:
    if name != "olmo2":
        return core.load(name)
    sys.path.insert(0, str(OLMO2))
    try:
        return core.load(OLMO2 / "tests/reference", plugin="corelm_olmo2", tokenizer=False)
    finally:
        sys.path.remove(str(OLMO2))


def ids_of(lm: core.LanguageModel) -> list[int]:
    return lm.encode(PROMPT) if lm.tokenizer is not None else [5, 9, 2, 5, 9, 2, 5]


class Script:
    """A processor that makes the model say given ids."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __call__(self, logits: mx.array, context: ProcessorContext) -> mx.array:
        ids = self.ids[context.generated :] or [0]
        return mx.where(mx.arange(logits.shape[1])[None] == ids[0], 0.0, -mx.inf)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_works_with_every_model(lm: core.LanguageModel, name: str) -> None:
    """As by hand: the whole sequence anew for each token, and the settings' chooser on its last logits.

    In bfloat16 (a GPU's dtype for these models, and that of their scales) a step of one token and a pass over the whole
    sequence round apart.
    """
    floats = {entry.dtype for entry in lm.report.plan.entries} - {mx.uint32}
    close = 1e-3 if floats == {mx.float32} else 0.1
    prompt, options = ids_of(lm), {"top_p": 1.0} | SETTINGS[name]
    result = lm.generate(prompt, max_tokens=8, logprobs=3, **options)
    chooser, history = Chooser(lm.model.vocab_size), list(prompt)
    chooser.join(Sampling(**options).checked(), prompt)
    for step, token_id in enumerate(result.token_ids):
        logits = lm.model(mx.array([history]))[:, -1].astype(mx.float32)
        chosen = chooser.choose(logits, [len(history)]).ids.item()
        exact = np.array(logits[0]).astype(np.float64)
        exact -= np.log(np.exp(exact).sum())
        assert result.logprobs is not None
        assert result.top_logprobs is not None
        assert result.logprobs[step] == pytest.approx(exact[token_id], abs=close)
        top = dict(result.top_logprobs[step])
        assert list(top.values()) == pytest.approx(list(-np.sort(-exact)[:3]), abs=close)
        assert [exact[i] for i in top] == pytest.approx(list(top.values()), abs=close)
        if chosen != token_id:
            assert close > 1e-3, "the same logits, and another token"
            return  # half precision decides near ties otherwise, and what follows has another history
        history.append(token_id)
    assert result.finish_reason in ("length", "stop")
    assert len(history) > len(prompt)


def test_log_probabilities_come_only_when_asked(mistral: core.LanguageModel) -> None:
    *chunks, last = mistral.stream(PROMPT, max_tokens=3)
    assert all((chunk.logprob, chunk.top_logprobs) == (None, ()) for chunk in chunks)
    assert last.result is not None
    assert (last.result.logprobs, last.result.top_logprobs) == (None, None)
    alone = mistral.generate(PROMPT, max_tokens=3, logprobs=0)
    assert alone.logprobs is not None
    assert alone.top_logprobs == [(), (), ()]


def test_stop_strings_cut_the_text_and_leave_the_cache_as_promised(mistral: core.LanguageModel) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0.9, "seed": 5}
    whole = mistral.generate(PROMPT, **options)
    text, cut_short = whole.text, 0
    for start in range(0, len(text) - 3, 7):
        stops = ["@@", text[start : start + 3], text[start + 1 : start + 4] + "@"]
        cache = mistral.make_cache()
        *chunks, last = mistral.stream(PROMPT, stop=stops, cache=cache, **options)
        result = last.result
        assert result is not None
        assert (result.text, result.stopped_by) == search(text, stops)
        assert "".join(chunk.text for chunk in [*chunks, last]) == result.text
        assert result.finish_reason == "stop"
        assert result.token_ids == whole.token_ids[: len(result.token_ids)]
        assert [chunk.token_id for chunk in chunks] == result.token_ids
        assert cache.length == len(result.prompt_ids) + len(result.token_ids) - 1
        cut_short += len(result.token_ids) < len(whole.token_ids)
    assert cut_short > 5


def test_text_held_for_a_stop_comes_when_the_generation_ends(mistral: core.LanguageModel) -> None:
    assert mistral.tokenizer is not None
    said = mistral.tokenizer.encode("My lord, I will", add_special_tokens=False)
    text = mistral.generate(PROMPT, max_tokens=len(said), processors=[Script(said)]).text
    stop = text[-9:] + " not"
    *chunks, last = mistral.stream(PROMPT, max_tokens=len(said), stop=stop, processors=[Script(said)])
    assert last.result is not None
    assert "".join(chunk.text for chunk in chunks) == text[:-9], "held back"
    assert (last.text, last.result.text, last.result.finish_reason) == (text[-9:], text, "length")
    assert last.result.stopped_by is None
    (eos,) = mistral.tokenizer.eos_ids
    ended = mistral.generate(PROMPT, max_tokens=99, stop=stop, processors=[Script([*said, eos])])
    assert (ended.text, ended.finish_reason, ended.stopped_by) == (text, "stop", eos)
    assert ended.token_ids == [*said, eos]


def test_the_context_ends_a_generation() -> None:
    lm = load("olmo2")
    assert lm.context == 256
    result = lm.generate([3] * 250, max_tokens=20)
    assert (len(result.token_ids), result.finish_reason, result.stopped_by) == (6, "context", None)
    assert lm.generate([3] * 250, max_tokens=6).finish_reason == "length"
    cache = lm.make_cache()
    first = lm.generate([3] * 200, max_tokens=50, cache=cache)
    assert first.finish_reason == "length"
    assert len(lm.generate([3] * 5, max_tokens=50, cache=cache).token_ids) == 2
    for prompt, kept in (([3] * 256, None), ([3] * 3, cache)):
        with pytest.raises(UsageError, match="no room in the model's context"):
            lm.stream(prompt, cache=kept)
    assert lm.generate([3] * 255).finish_reason == "context"


CONTEXTS: list[tuple[dict[str, Any], int | None]] = [
    ({}, 512),
    ({"sliding_window": 8}, None),
    ({"sliding_window": 1024}, 512),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, 2048),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 1024),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}, 512),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128}}, 1024),
]


@pytest.mark.parametrize(("changes", "expected"), CONTEXTS, ids=repr)
def test_how_long_a_context_is(changes: dict[str, Any], expected: int | None) -> None:
    built = core.build(CONFIG | {"sliding_window": None} | changes)
    lm = core.LanguageModel(built.model, built.config, None, None)  # type: ignore[arg-type]
    assert lm.context == expected


def test_a_config_may_name_no_context() -> None:
    assert context_length(object()) is None


def test_a_window_model_goes_on_past_its_positions() -> None:
    built = core.build(CONFIG | {"sliding_window": 8, "max_position_embeddings": 16})
    lm = core.LanguageModel(built.model, built.config, None, None)  # type: ignore[arg-type]
    result = lm.generate([5] * 30, max_tokens=4)
    assert (len(result.token_ids), result.finish_reason) == (4, "length")


def test_defaults_come_from_the_generation_config(mistral: core.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = {"temperature": 0.6, "top_k": 30, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.2, "top_p": None}
    monkeypatch.setattr(mistral, "generation_config", stated | {"do_sample": True, "presence_penalty": 9.0})
    sampling = mistral.sampling(seed=3, min_p=0.2)
    assert sampling == Sampling(0.6, top_k=30, min_p=0.2, typical_p=0.9, repetition_penalty=1.2, seed=3).checked()
    monkeypatch.setattr(mistral, "generation_config", stated)
    assert mistral.sampling().temperature == 0, "transformers samples only where do_sample says so"
    for wrong in ({"min_p": 3.0}, {"top_k": "many"}, {"repetition_penalty": 0}):
        monkeypatch.setattr(mistral, "generation_config", wrong)
        with pytest.raises(UsageError, match=f"generation_config.json: .*{next(iter(wrong))}"):
            mistral.stream(PROMPT)


def test_dry_breaks_at_marks_unless_told_otherwise(mistral: core.LanguageModel) -> None:
    assert mistral.tokenizer is not None
    breakers = mistral.sampling(dry_multiplier=1.0).dry_breakers
    marked = [i for i in range(1024) if set(mistral.tokenizer.decode([i])) & set('\n:"*')]
    assert list(breakers) == marked
    assert marked
    assert mistral.sampling(dry_multiplier=1.0, dry_breakers=[]).dry_breakers == ()
    assert mistral.sampling().dry_breakers == ()


WRONG: list[dict[str, Any]] = [
    {"stop": ""},
    {"stop": ["a", ""]},
    {"logprobs": -1},
    {"logprobs": 5000},
    {"logprobs": True},
    {"max_tokens": -1},
    {"temprature": 0.5},
    {"logit_bias": {5000: 1.0}},
    {"dry_multiplier": 1.0, "dry_breakers": [5000]},
]


@pytest.mark.parametrize("options", WRONG, ids=repr)
def test_wrong_options_are_refused_before_anything_runs(mistral: core.LanguageModel, options: dict) -> None:
    with pytest.raises(UsageError):
        mistral.stream(PROMPT, **options)


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(TokenizerError, match="stop strings"):
        load("olmo2").stream([1, 2], stop="a")


@pytest.mark.parametrize("after", [0, 3])
def test_a_failing_processor_leaves_the_cache_as_promised(mistral: core.LanguageModel, after: int) -> None:
    def failing(logits: mx.array, context: ProcessorContext) -> mx.array:
        if context.generated >= after:
            raise ZeroDivisionError
        return logits

    cache, prompt, got = mistral.make_cache(), ids_of(mistral), []
    with pytest.raises(ProcessorError, match="'failing' failed"):
        got.extend(mistral.stream(prompt, processors=[failing], cache=cache))
    assert cache.length == len(prompt) + max(0, len(got) - 1)
    assert mistral.generate([5], max_tokens=3, cache=cache).token_ids, "and it can be used"
