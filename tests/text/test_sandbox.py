"""What templates may do, and what happens when they do more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ChatTemplateError
from core.text import meter
from core.text.templates import render

from .conftest import Make
from .references import DATA, TEMPLATES

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


STEPS, TEXT, TEXTS, ITEMS, BITS = (
    "takes more than 60,000 steps",
    "makes a text of more than 16,000,000 characters",
    "makes texts of more than 50,000,000 characters together",
    "makes a list of more than 1,000,000 items",
    "makes a number of more than 10,000 bits",
)
GROWN = "{% set n = namespace(a='aaaaaaaa') %}{% for i in range(60) %}CHANGE{% endfor %}"
BOMBS = {
    "range": ("{% for i in range(10 ** 9) %}{% endfor %}", ITEMS),
    "range_down": ("{% for i in range(0, -(10 ** 9), -1) %}{% endfor %}", ITEMS),
    "nested": ("{% for i in range(3000) %}{% for j in range(3000) %}{% endfor %}{% endfor %}", STEPS),
    "nested_text": ("{% set s = 'a' * 1000 %}{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}", STEPS),
    "nested_list": (
        "{% set s = [1] * 1000 %}{% for a in s %}{% for b in s if b == 2 %}{% endfor %}{% endfor %}",
        STEPS,
    ),
    "repeat": ("{{ 'a' * 10 ** 9 }}", TEXT),
    "repeat_list": ("{{ (10 ** 9 * [1]) | length }}", ITEMS),
    "double": (GROWN.replace("CHANGE", "{% set n.a = n.a + n.a %}"), TEXT),
    "tilde": (GROWN.replace("CHANGE", "{% set n.a = n.a ~ n.a %}"), TEXT),
    "join": (GROWN.replace("CHANGE", "{% set n.a = n.a.join([n.a, n.a]) %}"), TEXT),
    "join_filter": (GROWN.replace("CHANGE", "{% set n.a = [n.a, n.a] | join %}"), TEXT),
    "replace": (GROWN.replace("CHANGE", "{% set n.a = n.a.replace('a', n.a) %}"), TEXT),
    "replace_filter": (GROWN.replace("CHANGE", "{% set n.a = n.a | replace('a', n.a) %}"), TEXT),
    "percent_doubled": (GROWN.replace("CHANGE", "{% set n.a = '%s%s' % (n.a, n.a) %}"), TEXT),
    "format_doubled": (GROWN.replace("CHANGE", "{% set n.a = '{0}{0}'.format(n.a) %}"), TEXT),
    "block_doubled": (GROWN.replace("CHANGE", "{% set b %}{{ n.a }}{{ n.a }}{% endset %}{% set n.a = b %}"), TEXT),
    "list_doubled": (GROWN.replace("CHANGE", "{% set n.a = [n.a, n.a] %}") + "{{ n.a | tojson }}", ITEMS),
    "dict_doubled": (GROWN.replace("CHANGE", "{% set n.a = dict(a=n.a, b=n.a) %}") + "{{ n.a == n.a }}", ITEMS),
    "kept": (
        "{% set n = namespace(l=[]) %}{% for i in range(99) %}{% set n.l = n.l + ['a' * 999999] %}{% endfor %}",
        TEXTS,
    ),
    "percent": ("{{ '%10000000000d' % 1 }}", TEXT),
    "percent_star": ("{{ '%*d' % (9999999999, 1) }}", TEXT),
    "percent_precision": ("{{ '%.9999999999f' % 1.5 }}", TEXT),
    "percent_filter": ("{{ '%9999999999d' | format(1) }}", TEXT),
    "format": ("{{ '{:>9999999999}'.format('a') }}", TEXT),
    "format_inner": ("{{ '{0:{1}}'.format('a', 9999999999) }}", TEXT),
    "format_map": ("{{ '{a:9999999999}'.format_map({'a': 1}) }}", TEXT),
    "ljust": ("{{ 'a'.ljust(9999999999) }}", TEXT),
    "zfill": ("{{ 'a'.zfill(9999999999) }}", TEXT),
    "expandtabs": ("{{ '\t'.expandtabs(9999999999) }}", TEXT),
    "center": ("{{ 'a' | center(9999999999) }}", TEXT),
    "indent": ("{{ ('a\n' * 1000000) | indent(9999) }}", TEXT),
    "translate": ("{{ ('a' * 9999999).translate({97: 'bb'}) }}", TEXT),
    "split": ("{{ ('a ' * 2000000).split(' ') | length }}", ITEMS),
    "list": ("{{ ('a' * 16000000) | list | length }}", ITEMS),
    "batch": ("{{ [1] | batch(999999999, 'x') | list | length }}", ITEMS),
    "slices": ("{{ [1] | slice(999999999) | list | length }}", ITEMS),
    "striptags": ("{{ ('<>' * 100000) | striptags }}", STEPS),
    "sort": ("{{ range(900000) | sort | length }}", STEPS),
    "sum": ("{{ ([[1] * 500] * 500) | sum(start=[]) | length }}", STEPS),
    "search": ("{% set s = 'a' * 16000000 %}{% for i in range(9999) %}{{ 'b' in s }}{% endfor %}", STEPS),
    "slice": ("{% set s = 'a' * 1000000 %}{% for i in range(9999) %}{{ s[1:] | length }}{% endfor %}", TEXTS),
    "power": ("{{ 9 ** (9 ** 9) }}", BITS),
    "square": ("{% set n = namespace(a=3) %}{% for i in range(99) %}{% set n.a = n.a * n.a %}{% endfor %}", BITS),
    "output": ("{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "writes more than 16,000,000 characters"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recurses without end"),
    "macro_tree": ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", STEPS),
    "loop_tree": (
        "{% for x in [1, 1] recursive %}{% if loop.depth < 50 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
        STEPS,
    ),
    "date": ("{{ strftime_now('%9999999999d') }}", "asks for a date that is far too long"),
    "bytes": ("{{ (5).to_bytes(9999999999, 'big') }}", "does what the sandbox forbids"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would take minutes or gigabytes; counted, it takes neither. The bounds are lower than usual, to be quick."""
    monkeypatch.setattr(meter, "MAX_STEPS", 60_000)
    monkeypatch.setattr(meter, "MAX_MADE", 50_000_000)
    source, message = BOMBS[name]
    with pytest.raises(ChatTemplateError, match=f"the chat template {message}"):
        made(source)


def test_a_long_conversation_is_within_the_bounds(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty messages take less than a two hundredth of the steps in every published template."""
    monkeypatch.setattr(meter, "MAX_STEPS", meter.MAX_STEPS // 200)
    turns = [{"role": role, "content": "Some words " * 20} for _ in range(25) for role in ("user", "assistant")]
    tokenizer = make("v3-metaspace")
    for path in TEMPLATES:
        assert "Some words" in tokenizer.render_chat(turns[:-1], chat_template=path.read_text())


def test_an_error_of_a_bound_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError) as info:
        render(BOMBS["repeat"][0], {}, where=tmp_path / "chat_template.jinja")
    assert str(info.value).startswith(f"{tmp_path}/chat_template.jinja: the chat template makes a text")


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_json_is_pythons(value: Any, indent: int | None, ascii_only: bool) -> None:
    for sort in (False, True):
        text = made(
            f"{{{{ v | tojson(indent={(indent)!r}, ensure_ascii={ascii_only}, sort_keys={sort}) }}}}".replace(
                "None", "none"
            ),
            v=value,
        )
        assert text == json.dumps(value, indent=indent, ensure_ascii=ascii_only, sort_keys=sort)


FORMS = ["%s|%5s|%-5s|%.2s", "%d%%%05d%+d%x", "%r%c", "%(a)s%(b)5s", "%s %s", "%", "%d", "%*s"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "values", [("abc", "de", "f", "ghi"), (1, 2, 3, 255), ("x", "y"), {"a": "1", "b": 2}, "one", 5, (4, "x")]
)
def test_percent_is_pythons(form: str, values: Any) -> None:
    variables = {"f": form, "v": values}
    try:
        expected = form % values
    except (TypeError, ValueError) as error:
        with pytest.raises(ChatTemplateError, match=f"fails on the conversation: {type(error).__name__}"):
            made("{{ f % v }}", **variables)
    else:
        assert made("{{ f % v }}", **variables) == expected


@pytest.mark.parametrize("form", ["{} {}", "{0}{1}{0}", "{a}", "{0!r:>6}", "{:>{}}", "{{}}{}", "{", "{9}", "{:x}"])
def test_format_is_pythons(form: str) -> None:
    for values in (("ab", 5), (255, "x")):
        try:
            expected = form.format(*values, a="A")
        except Exception:
            with pytest.raises(ChatTemplateError, match="fails on the conversation"):
                made("{{ f.format(v, w, a='A') }}", f=form, v=values[0], w=values[1])
        else:
            assert made("{{ f.format(v, w, a='A') }}", f=form, v=values[0], w=values[1]) == expected


def test_bounds_leave_ordinary_operators_alone() -> None:
    assert made(
        "{{ 2 ** 10 }}{{ 3 * 4 }}{{ 1.5 + 2 }}{{ 2 * 'ab' }}{{ [1] + [2] }}{{ 0 ** 9 }}{{ 2 ** -1 }}{{ -3 * 2 }}"
    ) == ("1024123.5abab[1, 2]00.5-6")


def test_every_rendering_counts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_STEPS", 10_000)
    for _ in range(3):
        assert made("{% for i in range(6000) if i < 0 %}{% endfor %}ok") == "ok"


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
    "loops": ("{% for a in [1] %}" * 25 + "{% endfor %}" * 25, "cannot be compiled: too many statically nested blocks"),
    "digits": ("{{ " + "9" * 5000 + " }}", "cannot be compiled: Exceeds the limit"),
    "length": (" " * 1_000_001, "is too long"),
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
