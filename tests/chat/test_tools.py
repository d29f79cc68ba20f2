"""Tool calls in a conversation: what is said and what is called, and how results go back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from core.chat import Conversation
from core.generation import GenerationChunk, GenerationResult, GenerationStats, Sampling
from core.text import TextFiles, Tokenizer
from tests.text.references import CHATS
from tests.text.vocabularies import config, sentencepiece_json

TOOLS = next(case["tools"] for case in CHATS if case["name"] == "tools_ask")
CALLS = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]</s>'


class Length:
    """A cache of which only the length is known."""

    length = 0

    def rewind(self, tokens: int) -> None:
        assert 0 < tokens <= self.length
        self.length -= tokens


class Scripted:
    """A model that says what it is told to, token by token; literals of control tokens are the tokens."""

    def __init__(self, tokenizer: Tokenizer, *answers: str) -> None:
        self.tokenizer, self.answers = tokenizer, list(answers)
        self.prompts: list[list[int]] = []
        self.context, self.generation_config = None, dict[str, Any]()
        self.model = SimpleNamespace(make_cache=lambda batch: Length())

    def sampling(self, **options: Any) -> Sampling:
        return Sampling(**options)

    def stream(
        self, ids: list[int], *, cache: Any, history: list[int], continues: bool, **options: Any
    ) -> Iterator[GenerationChunk]:
        assert not continues
        self.prompts.append(ids)
        new = self.tokenizer.encode(self.answers.pop(0), add_special_tokens=False)
        detokenizer = self.tokenizer.detokenizer()
        text = ""
        for place, token_id in enumerate(new):
            piece = detokenizer.add(token_id)
            text += piece
            cache.length += len(ids) if place == 0 else 1
            yield GenerationChunk(piece, token_id)
        result = GenerationResult(text + detokenizer.finish(), new, ids, "stop", Sampling(), GenerationStats())
        yield GenerationChunk(detokenizer.finish(), None, result)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """v3 of Mistral's vocabularies, without a template: its instruction format serves."""
    return Tokenizer.from_files(TextFiles(sentencepiece_json("v3", "metaspace"), tokenizer_config=config()))


@pytest.fixture(scope="module")
def seven() -> Tokenizer:
    """v7, in which an answer may have text and calls."""
    return Tokenizer.from_files(TextFiles(sentencepiece_json("v7", "metaspace"), tokenizer_config=config()))


def talk(tokenizer: Tokenizer, *answers: str) -> tuple[Conversation, Scripted]:
    model = Scripted(tokenizer, *answers)
    return Conversation(model, tools=TOOLS), model  # type: ignore[arg-type]


def test_a_call_its_result_and_the_answer(tokenizer: Tokenizer) -> None:
    chat, model = talk(tokenizer, CALLS, "22 degrees.</s>", "Yes.</s>")
    chunks = list(chat.stream("Weather in Paris?"))
    assert "".join(chunk.text for chunk in chunks) == ""
    assert chat.calls.problem is None
    assert chunks[-1].result is chat.result is not None
    (call,) = chat.result.tool_calls
    assert (call.name, call.arguments) == ("weather", {"city": "Paris"})
    assert chat.calls.calls == (call,)
    chat.add({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": "22"})
    answer = chat.generate()
    assert (answer.text, answer.tool_calls) == ("22 degrees.", ())
    assert chat.calls.calls == ()
    assert chat.generate("Sure?").text == "Yes."
    assert [message["role"] for message in chat.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
    ]
    assert chat.messages[1] == {"role": "assistant", "tool_calls": [call.as_message()]}
    # Each prompt is the whole conversation of which a beginning is held: together they are what is encoded anew.
    plain = json.loads(json.dumps(chat.messages))
    expected = tokenizer.encode_chat(plain[:3], tools=TOOLS)
    assert expected[-len(model.prompts[1]) :] == model.prompts[1]
    assert tokenizer.decode(model.prompts[1]).count("22") == 1
    assert len(model.prompts[1]) < len(expected) // 2


def test_ids_of_calls_differ_from_turn_to_turn(tokenizer: Tokenizer) -> None:
    chat, _ = talk(tokenizer, CALLS, CALLS)
    chat.generate("Weather in Paris?")
    (first,) = chat.calls.calls
    chat.add({"role": "tool", "tool_call_id": first.id, "content": "unknown"})
    chat.generate()
    (second,) = chat.calls.calls
    assert first.arguments == second.arguments
    assert first.id != second.id


def test_text_before_a_call_is_said(seven: Tokenizer) -> None:
    chat, _ = talk(seven, "Let me look." + CALLS)
    chunks = list(chat.stream("Weather?"))
    assert "".join(chunk.text for chunk in chunks) == "Let me look."
    assert chunks[-1].result is not None
    assert chunks[-1].result.text == chat.messages[-1]["content"] == "Let me look."
    assert chat.messages[-1]["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize("form", ["v3", "v7"])
def test_a_malformed_call_is_said_after_all(tokenizer: Tokenizer, seven: Tokenizer, form: str) -> None:
    own = tokenizer if form == "v3" else seven
    chat, _ = talk(own, 'Look: [TOOL_CALLS] [{"name": "weather", "arg')
    chunks = list(chat.stream("Weather?"))
    assert "".join(chunk.text for chunk in chunks) == chat.messages[-1]["content"]
    assert chat.messages[-1]["content"].endswith('[{"name": "weather", "arg')
    assert "tool_calls" not in chat.messages[-1]
    assert chat.calls.problem is not None
    assert chunks[-1].text  # it was held back until then


def test_a_call_that_no_prompt_could_hold_is_none(tokenizer: Tokenizer) -> None:
    """Arguments that are nested too deeply stay text, and the conversation goes on."""
    call = f'[{{"name": "weather", "arguments": {{"city": {"[" * 300}{"]" * 300}}}}}]'
    chat, _ = talk(tokenizer, f"[TOOL_CALLS] {call}</s>", "Yes.</s>")
    result = chat.generate("Weather in Paris?")
    assert result.tool_calls == chat.calls.calls == ()
    assert result.text.strip() == call
    assert chat.calls.problem == "the value of weather's arguments is nested more than 100 deep"
    assert chat.generate("Sure?").text == "Yes."


def test_a_call_that_was_interrupted_is_none(seven: Tokenizer) -> None:
    chat, _ = talk(seven, "Let me look." + CALLS)
    stream = chat.stream("Weather?")
    said = [next(stream).text for _ in range(12)]
    stream.close()  # type: ignore[attr-defined]
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(said), "interrupted": True}
    assert chat.messages[-1]["content"] == "Let me look."
