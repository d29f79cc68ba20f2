"""What a checkpoint's ``generation_config.json`` asks for is done, alone and in a batch, or named as unread."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import core
from core.errors import ConfigError, UsageError
from core.generation import GenerationResult, checkpoint_settings, unread_generation_keys
from tests.fixtures.variants import variant
from tests.loading.test_bad_checkpoints_cli import STORIES

PROMPT = "Enter the KING and his"


@pytest.fixture(scope="module")
def mistral() -> core.LanguageModel:
    return core.load("demo:mistral", dtype=mx.float32)  # a GPU's half precision decides near ties otherwise in a batch


def both(lm: core.LanguageModel, **options: Any) -> list[GenerationResult]:
    """The results of a generation, and of the same request in a batch."""
    batch = core.Batch(lm)
    request = batch.submit(PROMPT, temperature=0, **options)
    list(batch)
    assert request.result is not None, request.error
    return [lm.generate(PROMPT, temperature=0, **options), request.result]


def test_what_is_forbidden_is_never_chosen(mistral: core.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that the vocabulary has not are nothing to forbid, as in transformers."""
    free = mistral.generate(PROMPT, max_tokens=12, temperature=0)
    first, second, *_, last = free.token_ids
    stated: dict[str, Any] = {
        "suppress_tokens": [last, 99_999, -1],
        "begin_suppress_tokens": [first],
        "bad_words_ids": [[second], [99_999, 1]],
        "no_repeat_ngram_size": 2,
        "min_length": 2,
        "min_new_tokens": 4,
    }
    monkeypatch.setattr(mistral, "generation_config", stated)
    settings = mistral.sampling()
    assert (settings.suppress_tokens, settings.bad_words_ids) == ((last,), ((second,),))
    assert (settings.min_new_tokens, settings.min_length) == (4, 0), "the first goes before the other"
    for result in both(mistral, max_tokens=24):
        assert result.token_ids[0] != first
        assert not {second, last} & set(result.token_ids)
        pairs = list(itertools.pairwise(result.prompt_ids + result.token_ids))
        assert len(set(pairs)) == len(pairs)
    for wrong in ({"suppress_tokens": 5}, {"bad_words_ids": [5]}, {"min_new_tokens": -1}, {"stop_strings": [""]}):
        monkeypatch.setattr(mistral, "generation_config", wrong)
        with pytest.raises(UsageError, match=f"generation_config.json: .*{next(iter(wrong))}"):
            mistral.stream(PROMPT)


def test_an_answer_does_not_end_too_early(mistral: core.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    end = mistral.generate(PROMPT, max_tokens=1, temperature=0).token_ids[0]  # stands for the end of a text
    monkeypatch.setattr(core.LanguageModel, "eos_ids", frozenset([end, 99_999]))
    bias = {end: 50.0}
    assert [len(result.token_ids) for result in both(mistral, logit_bias=bias)] == [1, 1]
    for name, count in (("min_new_tokens", 4), ("min_length", len(mistral.encode(PROMPT)) + 4)):
        for result in both(mistral, logit_bias=bias, max_tokens=9, **{name: count}):
            ids = result.token_ids
            assert (len(ids), ids.count(end), ids[-1]) == (5, 1, end)


def test_stop_strings(mistral: core.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    text = mistral.generate(PROMPT, max_tokens=24, temperature=0).text
    stop = text[9:12]
    for stated in ([stop], stop):
        monkeypatch.setattr(mistral, "generation_config", {"stop_strings": stated})
        for result in both(mistral, max_tokens=24):
            assert (result.text, result.stopped_by) == (text[: text.index(stop)], stop)
    assert [result.text for result in both(mistral, max_tokens=24, stop=[])] == [text, text]
    without = core.LanguageModel(mistral.model, mistral.config, None, mistral.report, {"stop_strings": [stop]})
    assert len(without.generate([1, 5], max_tokens=3).token_ids) == 3, "there is no text to find them in"


def test_keys_that_nobody_reads_are_named(tmp_path: Path) -> None:
    path = variant(STORIES, tmp_path / "model")
    stated = {"num_beams": 4, "exponential_decay_length_penalty": [5, 1.1], "forced_eos_token_id": 2, "surprise": 1}
    read = {"do_sample": True, "no_repeat_ngram_size": 3, "eos_token_id": 2, "transformers_version": "5.23.0"}
    (path / "generation_config.json").write_text(json.dumps(read | stated))
    named = tuple(f"generation_config.{key}" for key in sorted(stated))
    assert core.plan(path).unread_keys == named
    lm = core.load(path, tokenizer=False)
    assert lm.report.plan.unread_keys == named
    with pytest.raises(ConfigError, match=r"generation_config\.num_beams"):
        core.load(path, strict=True)
    (path / "generation_config.json").write_text(json.dumps(read))
    assert core.plan(path, strict=True).unread_keys == ()


def test_values_that_do_nothing_are_not_named() -> None:
    """As transformers 4 wrote its defaults into every file."""
    neutral = {
        "num_beams": 1,
        "num_beam_groups": 1,
        "guidance_scale": None,
        "early_stopping": False,
        "epsilon_cutoff": 0,
    }
    neutral |= {"encoder_repetition_penalty": 1.0, "token_healing": False, "length_penalty": 1.0, "max_length": 20}
    assert unread_generation_keys(neutral) == []
    assert unread_generation_keys({"encoder_repetition_penalty": 1.1, "num_beams": 2}) == [
        "encoder_repetition_penalty",
        "num_beams",
    ]


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), float("inf"), float("nan"), "7", True, [1]], ids=lambda x: str(x)[:5]
)
@pytest.mark.parametrize("key", ["top_k", "temperature", "min_length", "repetition_penalty"])
def test_a_number_is_one_that_a_float_can_hold(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"generation_config.json: key '{key}' is not a number"):
        checkpoint_settings({"do_sample": True, key: value})
