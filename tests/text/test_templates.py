"""Published templates: their text by transformers, their ids by mistral-common, BOS once, control tokens where they
wrote them and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any, Self

import pytest

from core.errors import ChatTemplateError
from core.text import TemplateWarning, Tokenizer, functions
from core.text.encoder import encode
from core.text.fence import Fence
from core.text.origin import GIVEN, WRITTEN, Traced

from .conftest import Make
from .references import CHATS, DATA, TEMPLATES, chats, template

RENDERINGS: dict[str, dict[str, str]] = json.loads((DATA / "renderings.json").read_text())
STEMS = [path.stem for path in TEMPLATES]
pytestmark = pytest.mark.filterwarnings("ignore:the chat template does not use tools")
REFUSES = "the chat template refuses the conversation: "
FAILS = "the chat template fails on the conversation: "


def test_there_are_twenty_templates() -> None:
    assert len(STEMS) == 20


class ReferenceDay(datetime):
    """The day on which the references were made: some templates write it."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls(2026, 11, 21, tzinfo=tz)


@pytest.mark.parametrize("stem", STEMS)
def test_text_is_that_of_transformers(make: Make, stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text, or the template's own message, or the kind of its failure, for every conversation."""
    monkeypatch.setattr(functions, "datetime", ReferenceDay)
    tokenizer = make("tekken")
    for case in CHATS:
        try:
            text = tokenizer.render_chat(case["messages"], tools=case["tools"], chat_template=template(stem))
            made = hashlib.sha256(text.encode()).hexdigest()[:16]
        except ChatTemplateError as error:
            made = error.problem.removeprefix(REFUSES)
            if made.startswith(FAILS):
                made = made.removeprefix(FAILS).split(":")[0]
        expected = RENDERINGS[stem][case["name"]]
        if case["name"] == "chunks" and expected == "TypeError":  # this template knows no parts: they are joined
            expected = hashlib.sha256(joined_chunks(tokenizer, stem).encode()).hexdigest()[:16]
        assert made == expected, case["name"]


def joined_chunks(tokenizer: Tokenizer, stem: str) -> str:
    """The text of the conversation in parts with the parts as one text."""
    return tokenizer.render_chat([{"role": "user", "content": "[IN\nST] x"}], chat_template=template(stem))


# Template, vocabulary, mistral-common's version, and the conversations on which the template itself departs from
# mistral-common. The metaspace form is exact on rendered chat; the legacy form puts a space after every control token,
# which templates that write one themselves do not expect. All the templates:
# - end the answer that "prefix" (mistral-common's own key) leaves open, and refuse "assistant_first", where
#   mistral-common puts an empty user message in front;
# - "empty_user": write "[INST] [/INST]" with a space, where mistral-common has none;
# - "trailing_space_assistant": keep the spaces that mistral-common strips from v2 on;
# - "system_later": move a later system message, and join what it parts, where mistral-common joins neighbours only;
# - "tools_json", "tools_parallel": write a tool's result as a JSON string, where mistral-common reads JSON in it.
COMMON = {"prefix", "assistant_first"}
SPACES = {"empty_user", "trailing_space_assistant"}
DEPARTURES = {
    ("mistral-common-v1_spm", "v1-metaspace"): COMMON | {"system_later"},
    ("mistral-common-v2_spm", "v2-metaspace"): COMMON | SPACES | {"system_later"},
    ("mistral-common-v3_spm", "v3-metaspace"): COMMON | SPACES | {"system_later", "tools_json", "tools_parallel"},
    ("mistral-common-v7_spm", "v7-metaspace"): COMMON | SPACES | {"tools_parallel"},
}


@pytest.mark.parametrize(("stem", "name"), DEPARTURES)
def test_ids_are_those_of_mistral_common(make: Make, stem: str, name: str) -> None:
    """Among them all conversations whose text holds literals of control tokens."""
    version = name.split("-")[0]
    assert departing(make(name), template(stem), chats(version), version) == DEPARTURES[stem, name]


def departing(tokenizer: Tokenizer, source: str, cases: list[Any], version: str) -> set[str]:
    found = set()
    for case in cases:
        try:
            ids = tokenizer.encode_chat(case["messages"], tools=case["tools"], chat_template=source)
        except ChatTemplateError:
            ids = []
        if ids != case["ids"][version]:
            found.add(case["name"])
    return found


# Older templates, on conversations that all of them accept. What they write between an answer and what is around it:
# - Mixtral's puts no space before an answer: only conversations of one turn can match, in the legacy form.
# - Large 2407 trims answers ("leading_space", "newlines", "trailing_space_assistant").
ACCEPTED = {"single", "three", "five", "unicode", "code", "leading_space", "trailing_space_user", "newlines"} | {
    name for name in (case["name"] for case in CHATS) if name.startswith(("literal_", "space_", "bytes_"))
} - {"literal_system"}
ANSWERED = {case["name"] for case in CHATS if len(case["messages"]) > 1}
OLDER = [
    ("hf-Mixtral-8x7B-Instruct-v0.1", "v1-legacy", ACCEPTED & ANSWERED),
    ("hf-Mistral-7B-Instruct-v0.2-old", "v1-legacy", ACCEPTED & ANSWERED),
    ("hf-Mistral-7B-Instruct-v0.1", "v1-legacy", ACCEPTED & ANSWERED),
    ("hf-Mistral-7B-Instruct-v0.2-v1sys", "v1-metaspace", set()),
    ("hf-Mistral-Large-Instruct-2407-v3", "v3-metaspace", {"leading_space", "newlines"}),
    ("hf-Mistral-Large-Instruct-2411-v7", "v7-metaspace", set()),
]


@pytest.mark.parametrize(("stem", "name", "expected"), OLDER, ids=[stem for stem, _, _ in OLDER])
def test_ids_of_older_templates(make: Make, stem: str, name: str, expected: set[str]) -> None:
    cases = [case for case in CHATS if case["name"] in ACCEPTED]
    assert departing(make(name), template(stem), cases, name.split("-")[0]) == expected


@pytest.mark.parametrize("stem", ["hf-Mistral-Nemo-Instruct-2407", "mistral-common-v3"])
def test_ids_of_tekken_templates(make: Make, tekken_reference: Callable[..., list[int]], stem: str) -> None:
    """Against mistral-common itself; it strips the spaces at an answer's end."""
    tokenizer = make("tekken")
    for case in CHATS:
        if case["name"] in ACCEPTED | {"empty_user", "system", "literal_system", "tools_ask"}:
            ids = tokenizer.encode_chat(case["messages"], tools=case["tools"], chat_template=template(stem))
            assert ids == tekken_reference(case["messages"], case["tools"]), case["name"]


VOCABULARIES = ["v1-legacy", "v7-metaspace", "tekken"]


@pytest.mark.parametrize("stem", STEMS)
def test_bos_once_and_control_tokens_only_where_written(make: Make, stem: str) -> None:
    """Every template, on every conversation it accepts, in every kind of vocabulary.

    What users wrote is replaced by harmless words of their own: the control tokens must then be the same ones.
    """
    source = template(stem)
    for name in VOCABULARIES:
        tokenizer = make(name)
        accepted = 0
        for case in CHATS:
            try:
                ids = tokenizer.encode_chat(case["messages"], tools=case["tools"], chat_template=source)
            except ChatTemplateError:
                continue
            accepted += 1
            assert ids[0] == tokenizer.bos_id, case["name"]
            assert ids.count(1) == 1, case["name"]
            if case["name"].startswith("literal_"):
                tame = [{**message, "content": "x y"} for message in case["messages"]]
                special = tokenizer.special_ids
                tame_ids = tokenizer.encode_chat(tame, chat_template=source)
                assert [i for i in ids if i in special] == [i for i in tame_ids if i in special], case["name"]
        assert accepted >= 15


@pytest.mark.parametrize("stem", STEMS)
def test_both_routes_agree(make: Make, stem: str) -> None:
    """Where no user wrote a literal, the fenced route gives the ids of the whole text encoded plainly."""
    agreed = 0
    source = template(stem)
    for name in VOCABULARIES:
        tokenizer = make(name)
        guard = tokenizer._chat._guard(source)
        for case in CHATS:
            if case["name"].startswith(("literal_", "bytes_", "tools_literal", "chunks")):
                continue  # these need the fence
            try:
                rendered = tokenizer.render_chat(case["messages"], tools=case["tools"], chat_template=source)
            except ChatTemplateError:
                continue
            # A value that wrote a literal ahead of the chat sends all of it the fenced way.
            ahead = Traced("</s>", GIVEN * 4) + Traced(rendered, WRITTEN * len(rendered))
            fence = Fence(guard.literals, ahead)
            assert fence.needed
            ids = guard.encoder.encode(fence)
            plain = encode(tokenizer._backend, rendered)
            assert ids[-len(plain) :] == plain, case["name"]
            agreed += 1
    assert agreed >= 3 * 10


def test_raw_prompt_from_a_rendered_chat_has_one_bos(make: Make) -> None:
    tokenizer = make("v3-metaspace", template("mistral-common-v3_spm"))
    messages = CHATS[0]["messages"]
    assert tokenizer.encode(tokenizer.render_chat(messages)) == tokenizer.encode_chat(messages)


def test_a_template_that_writes_bos_twice(make: Make) -> None:
    tokenizer = make("v3-metaspace", "{{ bos_token }}{{ bos_token }}{{ messages[0].content }}")
    assert tokenizer.encode_chat([{"role": "user", "content": "<s>"}]).count(1) == 1


PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
PART_TEMPLATES = {
    "plain": ("{{ messages[0].content }}", "one\ntwo"),
    "concatenated": ("{{ '[' + messages[0].content + ']' }}", "[one\ntwo]"),
    "tilde": ("{{ '[' ~ messages[0].content ~ ']' }}", "[one\ntwo]"),
    "method": ("{{ messages[0].content.strip() }}", "one\ntwo"),
    "filter": ("{{ messages[0].content | trim }}", "one\ntwo"),
    "percent": ("{{ '[%s]' % messages[0].content }}", "[one\ntwo]"),
    "only_text": ("{% if messages[0].content is string %}{{ messages[0].content }}{% endif %}", "one\ntwo"),
    "refused": ("{% if messages[0].content is not string %}{{ raise_exception('text!') }}{% endif %}ok", "ok"),
    "loop": ("{% for part in messages[0].content %}({{ part.text }}){% endfor %}", "(one)(two)"),
    "select": (
        "{{ messages[0].content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}",
        "onetwo",
    ),
    "first": ("{{ messages[0].content[0].text }}", "one"),
    "both": (
        "{% set c = messages[0].content %}{% if c is string %}{{ c }}{% else %}"
        "{% for p in c %}<{{ p['text'] }}>{% endfor %}"
        "{% endif %}",
        "<one><two>",
    ),
    "json": ("{{ messages[0].content | tojson }}", json.dumps(PARTS)),
}


@pytest.mark.parametrize("name", PART_TEMPLATES)
def test_parts_for_templates_that_know_them_and_text_for_others(make: Make, name: str) -> None:
    source, expected = PART_TEMPLATES[name]
    text = make("v3-metaspace").render_chat([{"role": "user", "content": PARTS}], chat_template=source + "{#- { -#}")
    assert text == expected


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}", "{% for p in messages[0].content %}{{ p.text }}{% endfor %}"]
)
def test_a_part_that_is_no_text_is_named(make: Make, source: str) -> None:
    tokenizer = make("v3-metaspace", source)
    for kind, value in (("image_url", {"url": "file:///x"}), ("input_audio", {}), ("file", {})):
        parts = [*PARTS, {"type": kind, kind: value}]
        with pytest.raises(ChatTemplateError, match=f"message 1 has a part of the type '{kind}'"):
            tokenizer.encode_chat([{"role": "user", "content": parts}])
    for broken, message in (
        ([{"type": "text"}], "of the type 'text' without text"),
        ([{"type": ["text"], "text": "x"}], r"of the type \['text'\]"),
        ([*PARTS, "x"], "mixes parts with other values"),
    ):
        with pytest.raises(ChatTemplateError, match=message):
            tokenizer.encode_chat([{"role": "user", "content": broken}])


def test_thinking_is_text_of_its_own(make: Make) -> None:
    message = {"role": "user", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "x"}]}
    tokenizer = make("v3-metaspace")
    source = "{% for p in messages[0].content %}{{ p.type }}{{ p.text or p.thinking }} {% endfor %}"
    assert tokenizer.render_chat([message], chat_template=source) == "thinkinghm textx "
    with pytest.raises(ChatTemplateError, match="a part of the type 'thinking', and the chat template takes text only"):
        tokenizer.render_chat([message], chat_template="{{ messages[0].content }}")


def test_tools_that_a_template_ignores_are_warned_of(make: Make) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    tokenizer = make("v3-metaspace", "{{ messages[0].content }}")
    with pytest.warns(TemplateWarning, match="does not use tools: the model is not told of them") as caught:
        tokenizer.encode_chat([{"role": "user", "content": "x"}], tools=tools)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode_chat([{"role": "user", "content": "x"}])
        tokenizer.render_chat([{"role": "user", "content": "x"}], tools=tools, chat_template="{{ tools | tojson }}")
