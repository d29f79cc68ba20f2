"""Conversations and tools in a batch: a request's text and calls are those of ``LanguageModel.stream``."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

import core
from core.batching.answer import TimedAnswer
from core.batching.options import Wanted
from core.generation import Sampling, Token
from core.text import TextFiles, Tokenizer
from tests.text.vocabularies import config, sentencepiece_json

STORIES = Path(__file__).parents[1] / "fixtures" / "stories" / "stories260K-mistral"
TEMPLATE = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"


@pytest.mark.parametrize(("options", "begins"), [({}, "Once"), ({"continues": True}, " Once")])
def test_an_answer_begins_without_a_space(options: dict[str, bool], begins: str) -> None:
    lm = core.load(STORIES, dtype=mx.float32)
    assert lm.tokenizer is not None
    word = lm.tokenizer.encode("Once", add_special_tokens=False)[0]
    asked = [{"role": "user", "content": "Tell me."}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm.tokenizer._chat, "_templates", {"default": TEMPLATE})
        batch = core.Batch(lm)
        request = batch.submit(asked, max_tokens=1, logit_bias={word: 1000.0}, **options)
        list(batch)
        alone = lm.generate(asked, max_tokens=1, logit_bias={word: 1000.0}, **options)
    assert request.result is not None
    assert request.result.text == alone.text == begins


def test_calls_of_tools_are_parsed() -> None:
    tokenizer = Tokenizer.from_files(TextFiles(sentencepiece_json("v3", "metaspace"), tokenizer_config=config()))
    said = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]</s>'
    for offered in (True, False):
        wanted = Wanted(
            [1], 99, "length", Sampling(), tokenizer.eos_ids, tokenizer=tokenizer, continues=False, calls=offered
        )
        answer = TimedAnswer(wanted)
        for token_id in tokenizer.encode(said, add_special_tokens=False):
            answer.add(Token(token_id))
        result = answer.finish("stop").result
        assert result is not None
        assert [(call.name, call.arguments) for call in result.tool_calls] == (
            [("weather", {"city": "Paris"})] if offered else []
        )
        assert ("weather" in result.text) is not offered
