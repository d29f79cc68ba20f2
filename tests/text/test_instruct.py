"""Instruction formats without a template: ids by mistral-common, for every conversation that it accepts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.errors import ChatTemplateError
from core.text import Tokenizer

from .conftest import Make
from .references import CHATS, chats, names

# v2 and v3 share a vocabulary, and v3 is assumed: mistral-common's v2 writes calls without ids and drops those before
# the last user message.
V2_DIFFERS = {"tools_loop", "tools_json", "tools_literal"}

FORMS = [
    ("v1", "legacy"),
    ("v1", "metaspace"),
    ("v2", "metaspace"),
    ("v3", "legacy"),
    ("v3", "metaspace"),
    ("v7", "metaspace"),
]
CASES = [(f"{version}-{form}", case) for version, form in FORMS for case in chats(version)]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case['name']}" for name, case in CASES])
def test_ids(make: Make, name: str, case: dict[str, Any]) -> None:
    """Both forms of a vocabulary give the reference's ids, leading spaces included."""
    version = name.split("-")[0]
    if version == "v1" and case["tools"]:
        with pytest.raises(ChatTemplateError, match="cannot express tools"):  # mistral-common drops them silently
            make(name).encode_chat(case["messages"], tools=case["tools"])
        return
    same = make(name).encode_chat(case["messages"], tools=case["tools"]) == case["ids"][version]
    assert same != (version == "v2" and case["name"] in V2_DIFFERS)


@pytest.mark.parametrize("case", CHATS, ids=names(CHATS))
def test_tekken_ids(make: Make, tekken_reference: Callable[..., list[int]], case: dict[str, Any]) -> None:
    """Against mistral-common itself, on the vocabulary's first words."""
    ids = make("tekken").encode_chat(case["messages"], tools=case["tools"])
    assert ids == tekken_reference(case["messages"], case["tools"])


@pytest.mark.parametrize("case", chats("v3"), ids=names(chats("v3")))
def test_shown_text_is_what_the_ids_say(make: Make, case: dict[str, Any]) -> None:
    """The rendered text, for reading, is the decoded prompt; only the decoder's treatment of spaces is its own."""
    for name in ("v1-legacy", "v3-metaspace", "v7-metaspace", "tekken"):
        if name == "v1-legacy" and case["tools"]:
            continue
        tokenizer = make(name)
        shown = tokenizer.render_chat(case["messages"], tools=case["tools"])
        ids = tokenizer.encode_chat(case["messages"], tools=case["tools"])
        if name != "tekken":
            shown = shown.replace("▁", " ")  # SentencePiece's sign for a space, decoded as one
        assert shown == tokenizer.decode(ids, skip_special_tokens=False)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


CALL = {"id": "aaaaaaaaa", "function": {"name": "f", "arguments": {"a": 1}}}
REFUSED: dict[str, tuple[list[Any], str]] = {
    "role": ([{"role": "boss", "content": "x"}], "not 'boss'"),
    "image": ([user([{"type": "image_url", "image_url": "x"}])], "message 1 has a part of the type 'image_url'"),
    "no_content": ([user(None)], "x"),
    "number": ([user(3)], "takes content as text, not as int"),
    "silent_assistant": ([user("x"), {"role": "assistant", "content": ""}], "without content"),
    "both": ([user("x"), {"role": "assistant", "content": "y", "tool_calls": [CALL]}], "both content and tool calls"),
    "prefix": ([user("x"), {"role": "assistant", "content": "y", "prefix": True}, user("z")], "as the last one only"),
    "call": ([user("x"), {"role": "assistant", "tool_calls": [{"id": "x"}]}], "takes tool calls as"),
    "result": ([user("x"), {"role": "tool", "content": "1"}], "needs the tool_call_id"),
    "not_a_list": ("hello", "a conversation is a list of messages"),  # type: ignore[dict-item]
    "empty": ([], "the conversation is empty"),
    "no_role": ([{"content": "x"}], "a message is a mapping with a role"),
    "not_a_mapping": (["x"], "a message is a mapping with a role"),
}


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "no_content"])
def test_refused(make: Make, name: str) -> None:
    messages, message = REFUSED[name]
    for method in (make("v3-metaspace").encode_chat, make("v3-metaspace").render_chat):
        with pytest.raises(ChatTemplateError, match=message):
            method(messages)


def test_user_without_content_is_empty(make: Make) -> None:
    tokenizer = make("v3-metaspace")
    assert tokenizer.encode_chat([user(None)]) == tokenizer.encode_chat([user("")]) == [1, 3, 4]


def test_arguments_may_be_text_or_object(make: Make) -> None:
    tokenizer = make("v3-metaspace")
    as_object = [user("x"), {"role": "assistant", "tool_calls": [CALL]}]
    text = {"id": "aaaaaaaaa", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert tokenizer.encode_chat(as_object) == tokenizer.encode_chat(
        [user("x"), {"role": "assistant", "tool_calls": [text]}]
    )


def test_tools_of_an_unknown_form(make: Make) -> None:
    with pytest.raises(ChatTemplateError, match="takes tools as"):
        make("v3-metaspace").encode_chat([user("x")], tools=[{"name": "f"}])


def test_v7_takes_content_and_calls_together(make: Make) -> None:
    tokenizer = make("v7-metaspace")
    shown = tokenizer.render_chat([user("x"), {"role": "assistant", "content": "y", "tool_calls": [CALL]}])
    assert shown == '<s>[INST] x[/INST] y[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "aaaaaaaaa"}]</s>'


def test_v1_refuses_what_it_cannot_express(make: Make) -> None:
    for messages in ([user("x"), {"role": "assistant", "tool_calls": [CALL]}], [{"role": "tool", "content": "1"}]):
        with pytest.raises(ChatTemplateError, match="cannot express tool"):
            make("v1-legacy").encode_chat(messages)


def test_other_vocabularies_have_no_format(stories: Tokenizer) -> None:
    assert not stories.can_chat
    for method in (stories.encode_chat, stories.render_chat):
        with pytest.raises(
            ChatTemplateError, match="has no chat template, and its vocabulary belongs to no known"
        ) as info:
            method([user("x")])
        assert "Give a text instead of a conversation" in str(info.value)


def test_can_chat(make: Make) -> None:
    assert make("v1-legacy").can_chat
    assert make("v1-legacy").chat_template is None
    assert make("v3-metaspace", "{{ messages }}").can_chat


def test_which_format_serves_is_said(make: Make) -> None:
    for version in (1, 3, 7):
        assert make(f"v{version}-metaspace").chat_format == f"instruct v{version}"
    assert make("v3-metaspace", "{{ messages }}").chat_format == "template"


def test_a_vocabulary_of_another_family_has_no_format(stories: Tokenizer) -> None:
    assert stories.chat_format is None
