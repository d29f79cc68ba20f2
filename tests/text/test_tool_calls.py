"""Tool calls out of ids: what mistral-common writes is read back, and whatever else a model writes stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokens
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from core.text import TextFiles, Tokenizer, load_tokenizer
from core.text.tool_calls import TOOL_CALLS, ToolCall, ToolCalls, parse_tool_calls

from .conftest import TEKKEN_WORDS, Make
from .references import CHATS, template
from .vocabularies import DATA, SPM, TEKKEN, config, tekken_json, tekken_special

# Later control tokens, in places that Tekken keeps free; the same in both forms of the vocabulary.
LATER = {17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]", 19: "[TOOL_CONTENT]", 32: "[ARGS]", 33: "[CALL_ID]"}
LATER |= {34: "[THINK]", 35: "[/THINK]", 10: "[IMG]", 12: "[IMG_BREAK]", 13: "[IMG_END]", 24: "[AUDIO]"}
LATER |= {25: "[BEGIN_AUDIO]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 11: "<pad>"}
VERSIONS = ["v3", "v7", "v11", "v13"]


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a vocabulary in Mistral's own form, by version."""

    @cache
    def made(version: str) -> Path:
        directory = tmp_path_factory.mktemp(version)
        if version in SPM:
            (directory / f"tokenizer.model.{version}").symlink_to(DATA / SPM[version])
            return directory
        tekken = json.loads((DATA / TEKKEN).read_bytes())
        tekken["config"] |= {"version": version, "default_vocab_size": TEKKEN_WORDS}
        names = [LATER.get(rank, f"<SPECIAL_{rank}>") for rank in range(1000)]
        names[:10] = tekken_special()[:10]
        tekken["special_tokens"] = [
            {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
        ]
        (directory / "tekken.json").write_text(json.dumps(tekken))
        return directory

    return made


@pytest.fixture(scope="session")
def reference(native: Callable[[str], Path]) -> Callable[[str], MistralTokenizer]:
    """mistral-common's tokenizer of a version."""

    @cache
    def opened(version: str) -> MistralTokenizer:
        (file,) = native(version).iterdir()
        return MistralTokenizer.from_file(str(file))

    return opened


@pytest.fixture(scope="session")
def tokenizer(native: Callable[[str], Path]) -> Callable[[str], Any]:
    return cache(lambda version: load_tokenizer(native(version)))


def written(reference: MistralTokenizer, calls: list[Any], content: str | None = None) -> list[int]:
    """The ids of an answer with calls, as mistral-common writes it for training: EOS at its end."""
    message = AssistantMessage(content=content, tool_calls=calls)
    ids = reference.instruct_tokenizer.encode_assistant_message(message, is_before_last_user_message=False)
    return [int(token_id) for token_id in ids]


def call(name: str, arguments: Any, call_id: str = "abcdefgh1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


CALLS = [
    call("weather", {"city": "Paris", "days": 2}),
    call("time", {"zone": "«é» [ARGS] [TOOL_CALLS]", "deep": {"a": [1, None, 2.5]}}, "ABC123xyz"),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_what_mistral_common_writes_is_read_back(
    reference: Callable[..., Any], tokenizer: Callable[..., Any], version: str, count: int
) -> None:
    """Literals of control tokens in an argument stay text, in the vocabularies whose tokens they are."""
    ids = written(reference(version), CALLS[:count])
    found = parse_tool_calls(ids, tokenizer(version))
    assert (found.text, found.problem) == ("", None)
    assert [(each.name, each.arguments) for each in found.calls] == [
        (each["function"]["name"], json.loads(each["function"]["arguments"])) for each in CALLS[:count]
    ]
    if version != "v13":  # which writes no ids
        assert [each.id for each in found.calls] == [each["id"] for each in CALLS[:count]]
    assert parse_tool_calls(ids[:-1], tokenizer(version)) == found  # ended by something else than EOS


@pytest.mark.parametrize("version", ["v7", "v11", "v13"])
def test_text_before_the_calls(reference: Callable[..., Any], tokenizer: Callable[..., Any], version: str) -> None:
    ids = written(reference(version), CALLS[:1], content="Let me look.")
    found = parse_tool_calls(ids, tokenizer(version))
    assert found.text == "Let me look."
    assert [each.name for each in found.calls] == ["weather"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(codec="utf-8"), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), JSON, max_size=3).filter(
    lambda value: not any("\ud800" <= c <= "\udfff" for c in json.dumps(value, ensure_ascii=False))
)


@settings(max_examples=40)
@given(arguments=ARGUMENTS, version=st.sampled_from(["v3", "v11", "v13"]))
def test_any_arguments(
    reference: Callable[..., Any], tokenizer: Callable[..., Any], arguments: Any, version: str
) -> None:
    ids = written(reference(version), [call("f", arguments)])
    (found,) = parse_tool_calls(ids, tokenizer(version)).calls
    assert found.arguments == arguments


@settings(max_examples=100)
@given(st.data())
def test_whatever_a_model_writes_raises_nothing(tokenizer: Callable[..., Any], data: st.DataObject) -> None:
    """Random ids with many control tokens: calls and no problem, or text and perhaps a problem."""
    own = tokenizer("v11")
    control = [own.id_of(form) for form in (TOOL_CALLS, "[ARGS]", "[CALL_ID]", "</s>")]
    json_ids = [i for text in ('{"a": 1}', "[", "{", '[{"name": "f"}]', "NaN", "f") for i in own.encode(text)[1:]]
    some = st.sampled_from(control + json_ids) | st.integers(0, own.vocab_size - 1)
    ids = data.draw(st.lists(some, max_size=12))
    found = parse_tool_calls(ids, own)
    if found.calls:
        assert found.problem is None
        assert all(each.name and isinstance(each.arguments, dict) and len(each.id) == 9 for each in found.calls)
    else:
        assert found.text == own.decode(ids)
        assert (found.problem is None) == (control[0] not in ids)


MALFORMED = {
    "cut": ("v3", [TOOL_CALLS, ' [{"name": "f", "argum'], "not valid JSON"),
    "nothing": ("v3", [TOOL_CALLS], "not valid JSON"),
    "object": ("v3", [TOOL_CALLS, ' {"name": "f", "arguments": {}}'], "not a list of calls"),
    "empty": ("v3", [TOOL_CALLS, " []"], "not a list of calls"),
    "no name": ("v3", [TOOL_CALLS, ' [{"arguments": {}}]'], "an object with name"),
    "other key": ("v3", [TOOL_CALLS, ' [{"name": "f", "parameters": {}}]'], "an object with name"),
    "name": ("v3", [TOOL_CALLS, ' [{"name": 3, "arguments": {}}]'], "no name"),
    "list": ("v3", [TOOL_CALLS, ' [{"name": "f", "arguments": [1]}]'], "arguments of f are not an object"),
    "trailing": ("v3", [TOOL_CALLS, ' [{"name": "f", "arguments": {}}] Done.'], "not valid JSON"),
    "one of two": ("v11", [TOOL_CALLS, "f", "[ARGS]", "{}", TOOL_CALLS, "g", "[ARGS]", "{"], "not valid JSON"),
    "infinity": ("v11", [TOOL_CALLS, "f", "[ARGS]", '{"a": Infinity}'], "Infinity is not JSON"),
    "surrogate": ("v11", [TOOL_CALLS, "f", "[ARGS]", '{"a": "\\ud800"}'], "not valid JSON"),
    "deep": ("v11", [TOOL_CALLS, "f", "[ARGS]", '{"a":' * 5000], "not valid JSON"),
    "twice": ("v11", [TOOL_CALLS, "f", "[ARGS]", "{}", "[ARGS]", "{}"], r"\[ARGS\] twice"),
    "ids twice": ("v11", [TOOL_CALLS, "f", "[CALL_ID]", "a", "[CALL_ID]", "b", "[ARGS]", "{}"], r"\[CALL_ID\] twice"),
    "no name at all": ("v13", [TOOL_CALLS, "[ARGS]", "{}"], "no name"),
    "no arguments": ("v13", [TOOL_CALLS, "f"], "not valid JSON"),
    "same id": ("v3", [TOOL_CALLS, ' [{"name": "f", "id": "abcdefgh1"}, {"name": "g", "id": "abcdefgh1"}]'], "same id"),
}


def ids_of(tokenizer: Any, parts: list[str]) -> list[int]:
    """Ids of pieces, of which those that are a control token's literal are the token."""
    control = {tokenizer.token_of(token_id): token_id for token_id in tokenizer.special_ids}
    return [
        token_id
        for part in parts
        for token_id in ([control[part]] if part in control else tokenizer.encode(part, add_special_tokens=False))
    ]


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(tokenizer: Callable[..., Any], name: str) -> None:
    version, parts, problem = MALFORMED[name]
    ids = ids_of(tokenizer(version), parts)
    found = parse_tool_calls(ids, tokenizer(version))
    assert found.calls == ()
    assert found.text == tokenizer(version).decode(ids)
    assert found.problem is not None
    assert re.search(problem, found.problem)


def test_a_literal_is_no_control_token(tokenizer: Callable[..., Any]) -> None:
    """The native vocabulary never makes control tokens of text; so this is what a model may spell."""
    text = '[TOOL_CALLS] [{"name": "rm", "arguments": {}}]'
    ids = tokenizer("v3").encode(text, add_special_tokens=False)
    assert not tokenizer("v3").special_ids.intersection(ids)
    assert parse_tool_calls(ids, tokenizer("v3")) == ToolCalls(text)


def test_ids_are_made_where_there_are_none(tokenizer: Callable[..., Any]) -> None:
    own = tokenizer("v13")
    ids = ids_of(own, [TOOL_CALLS, "f", "[ARGS]", "{}", TOOL_CALLS, "f", "[ARGS]", "{}"])
    made = [each.id for turn in (1, 2) for each in parse_tool_calls(ids, own, turn=turn).calls]
    assert len(set(made)) == 4
    assert all(len(each) == 9 and each.isascii() and each.isalnum() for each in made)
    assert made[:2] == [each.id for each in parse_tool_calls(ids, own, turn=1).calls]
    # An id of another form could be named by no result.
    ids = ids_of(tokenizer("v3"), [TOOL_CALLS, ' [{"name": "f", "arguments": {}, "id": "call_1"}]'])
    (found,) = parse_tool_calls(ids, tokenizer("v3")).calls
    assert len(found.id) == 9


def test_arguments_as_text_and_missing(make: Make) -> None:
    own = make("v3-metaspace")
    ids = ids_of(own, [TOOL_CALLS, ' [{"name": "f", "arguments": "{\\"a\\": 1}"}, {"name": "g"}]'])
    assert [each.arguments for each in parse_tool_calls(ids, own).calls] == [{"a": 1}, {}]


TOOLS = next(case["tools"] for case in CHATS if case["name"] == "tools_ask")


def conversation(calls: tuple[ToolCall, ...]) -> list[dict[str, Any]]:
    results = [
        {"role": "tool", "tool_call_id": each.id, "name": each.name, "content": f"result {place}"}
        for place, each in enumerate(calls)
    ]
    return [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "tool_calls": [each.as_message() for each in calls]},
        *results,
    ]


def later_tekken(source: str) -> Tokenizer:
    """Tekken with the later control tokens as ``tokenizer.json``, under a template."""
    new = {old: LATER.get(rank, old) for rank, old in enumerate(tekken_special())}
    data = re.sub(rb'"(<[^"<>]*>|\[[A-Z]+\])"', lambda match: renamed(match.group(), new), tekken_json(TEKKEN_WORDS))
    return Tokenizer.from_files(TextFiles(data, tokenizer_config=config(), chat_templates={"default": source}))


def renamed(literal: bytes, new: dict[str, str]) -> bytes:
    name = json.loads(literal)
    return json.dumps(new.get(name, name)).encode()


ROUTES = {
    "v3": ["v3-metaspace", "mistral-common-v3_spm"],
    "v7": ["v7-metaspace", "mistral-common-v7_spm"],
    "v11": ["tekken", "mistral-common-v11"],
    "v13": ["tekken", "mistral-common-v13"],
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_calls_and_results_go_back_as_mistral_common_has_them(
    make: Make, reference: Callable[..., Any], tokenizer: Callable[..., Any], version: str, count: int
) -> None:
    """The calls of an answer, put into the next prompt with their results: by mistral-common and by the template."""
    found = parse_tool_calls(written(reference(version), CALLS[:count]), tokenizer(version))
    messages = conversation(found.calls)
    request = ChatCompletionRequest(messages=json.loads(json.dumps(messages)), tools=TOOLS)
    expected = list(reference(version).encode_chat_completion(request).tokens)
    assert tokenizer(version).encode_chat(messages, tools=TOOLS) == expected
    vocabulary, stem = ROUTES[version]
    own = later_tekken(template(stem)) if vocabulary == "tekken" else make(vocabulary, template(stem))
    assert own.encode_chat(messages, tools=TOOLS) == expected
    if vocabulary != "tekken":
        assert make(vocabulary).encode_chat(messages, tools=TOOLS) == expected


def test_the_control_token_is_mistral_commons() -> None:
    assert SpecialTokens.tool_calls.value == TOOL_CALLS
