"""What templates may do, and what happens when they do more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.errors import ChatTemplateError
from core.text.templates import render

from .conftest import Make
from .references import DATA

FEATURES: dict[str, dict[str, str]] = json.loads((DATA / "features.json").read_text())
CHAT = [{"role": "user", "content": " Hello <b> & wörld "}, {"role": "assistant", "content": "x"}]


def made(source: str, **variables: Any) -> str:
    return render(source, {"messages": CHAT, "bos_token": "<s>", **variables})


@pytest.mark.parametrize("name", FEATURES)
def test_features_as_transformers_renders_them(make: Make, name: str) -> None:
    feature = FEATURES[name]
    tokenizer = make("v3-metaspace")
    if "text" in feature:
        assert tokenizer.render_chat(CHAT, chat_template=feature["source"]) == feature["text"]
    else:
        with pytest.raises(ChatTemplateError) as info:
            tokenizer.render_chat(CHAT, chat_template=feature["source"] + "{#- { -#}")
        assert info.value.problem == f"the chat template refuses the conversation: {feature['error']}"


def test_strftime_now() -> None:
    assert len(made("{{ strftime_now('%Y-%m-%d') }}")) == 10


FORBIDDEN = {
    "class": "{{ messages.__class__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__'] }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "mutate": "{{ messages.append(1) }}",
    "mutate_dict": "{{ messages[0].update({'a': 1}) }}",
    "namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "dict_class": "{{ dict.mro() }}",
    "code": "{{ strftime_now.__code__.co_consts }}",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_forbidden(name: str) -> None:
    """Nothing leads from a template to Python's internals, and the caller's messages stay as they are."""
    before = json.dumps(CHAT)
    with pytest.raises(ChatTemplateError, match=r"the chat template (does what the sandbox forbids|fails on)"):
        made(FORBIDDEN[name])
    assert json.dumps(CHAT) == before


def test_hidden() -> None:
    """Ways that lead nowhere without an error."""
    assert made("[{{ ''|attr('__class__') }}{{ ''|attr('__class__')|attr('__mro__') }}]") == "[]"
    assert made("[{{ '{a.__class__}'.format_map({'a': 1}) }}]") == "[]"


BOMBS = {
    "range": ("{% for i in range(10 ** 9) %}{% endfor %}", "loops more than 1,000,000 times"),
    "nested": (
        "{% for i in range(3000) %}{% for j in range(3000) %}{% endfor %}{% endfor %}",
        "loops more than 1,000,000 times",
    ),
    "repeat": ("{{ 'a' * 10 ** 9 }}", "makes a value of more than 16,000,000 items"),
    "repeat_list": ("{{ (10 ** 9 * [1]) | length }}", "makes a value of more than 16,000,000 items"),
    "double": (
        "{% set n = namespace(a='aaaaaaaa') %}{% for i in range(99) %}{% set n.a = n.a + n.a %}{% endfor %}",
        "makes a value of more than 16,000,000 items",
    ),
    "power": ("{{ 9 ** (9 ** 9) }}", "makes a number of more than 10,000 bits"),
    "square": (
        "{% set n = namespace(a=3) %}{% for i in range(99) %}{% set n.a = n.a * n.a %}{% endfor %}",
        "makes a number of more than 10,000 bits",
    ),
    "output": ("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "writes more than 16,000,000 characters"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recurses without end"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    source, message = BOMBS[name]
    with pytest.raises(ChatTemplateError, match=f"the chat template {message}"):
        made(source)


def test_bounds_leave_ordinary_operators_alone() -> None:
    assert made(
        "{{ 2 ** 10 }}{{ 3 * 4 }}{{ 1.5 + 2 }}{{ 2 * 'ab' }}{{ [1] + [2] }}{{ 0 ** 9 }}{{ 2 ** -1 }}{{ -3 * 2 }}"
    ) == ("1024123.5abab[1, 2]00.5-6")


def test_range_counts_anew_for_each_rendering() -> None:
    for _ in range(3):
        assert made("{% for i in range(600000) if i < 0 %}{% endfor %}ok") == "ok"


BROKEN = {
    "syntax": ("{% if %}", "has a syntax error in line 1: Expected an expression"),
    "line": ("a\nb\n{{ c", "has a syntax error in line 3"),
    "unknown_tag": ("{% nonsense %}", "has a syntax error in line 1: Encountered unknown tag 'nonsense'"),
    "unknown_filter": ("{{ 1 | nonsense }}", "has a syntax error in line 1: No filter named 'nonsense'"),
    "type": ("{{ 'a' + 1 }}", "fails on the conversation: TypeError"),
    "undefined": ("{{ nothing.at.all }}", "fails on the conversation: UndefinedError: 'nothing' is undefined"),
    "division": ("{{ 1 / 0 }}", "fails on the conversation: ZeroDivisionError"),
    "include": ("{% include 'x' %}", "fails on the conversation: TypeError: no loader"),
    "lipsum": ("{{ lipsum() }}", "fails on the conversation: UndefinedError: 'lipsum' is undefined"),
    "nesting": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "is nested too deeply"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    source, message = BROKEN[name]
    with pytest.raises(ChatTemplateError, match=f"the chat template {message}"):
        made(source)


def test_errors_name_the_file(tmp_path: Any) -> None:
    with pytest.raises(ChatTemplateError) as info:
        render("{{ raise_exception('no') }}", {}, where=tmp_path / "chat_template.jinja")
    assert str(info.value) == f"{tmp_path}/chat_template.jinja: the chat template refuses the conversation: no"
