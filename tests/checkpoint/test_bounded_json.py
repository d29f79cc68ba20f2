"""The bounds on documents that nobody vouches for: what is refused exceeds them, what passes does not."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.checkpoint import bounded_json
from core.checkpoint.bounded_json import parse_object, shown
from core.errors import ConfigError

tricky = st.text(st.sampled_from('[]{},:"\\ aü'), max_size=6)
documents = st.dictionaries(
    tricky,
    st.recursive(
        st.integers(-9, 9) | st.none() | tricky,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(tricky, inner, max_size=3),
        max_leaves=12,
    ),
    max_size=4,
)


def outcome(data: bytes, unique_keys: bool = False) -> tuple[dict[str, object] | None, str | None]:
    """The object, or the problem of the `ConfigError`; anything else is raised."""
    try:
        return parse_object(data, where="x", error=ConfigError, unique_keys=unique_keys), None
    except ConfigError as error:
        str(error).encode()
        return None, error.problem


def depth_of(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)
    return 0


@settings(max_examples=400, deadline=None)
@given(documents, st.integers(0, 6), st.sampled_from([None, 1]))
def test_depth_is_counted_as_the_parser_nests(document: dict[str, Any], limit: int, indent: int | None) -> None:
    data = json.dumps(document, indent=indent, ensure_ascii=False).encode()
    with patch.object(bounded_json, "MAX_DEPTH", limit):
        parsed, problem = outcome(data)
    if problem is None:
        assert parsed == document
        assert depth_of(document) <= limit + 1  # lists in a flat object are not counted
    else:
        assert problem == "is nested too deeply"
        assert depth_of(document) > limit


@settings(max_examples=200, deadline=None)
@given(documents, st.integers(0, 40))
def test_values_beyond_the_bound_are_refused(document: dict[str, Any], limit: int) -> None:
    """No document with more values than the bound (counted as brackets and commas) gets through."""
    data = json.dumps(document).encode()

    def count(value: Any) -> int:
        if isinstance(value, dict | list):
            return max(1, len(value)) + sum(map(count, value.values() if isinstance(value, dict) else value))
        return 0

    with patch.object(bounded_json, "MAX_VALUES", limit):
        _, problem = outcome(data)
    if problem is None:
        assert count(document) <= limit
    else:
        assert problem == "holds more values than any model file"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40) | st.text(st.sampled_from('[]{},:"\\ 1-.eEnulltrfasNI\n'), max_size=40).map(str.encode))
def test_arbitrary_bytes_give_an_object_or_a_config_error(data: bytes) -> None:
    for bound in (64, 2):
        with patch.object(bounded_json, "MAX_DEPTH", bound):
            parsed, problem = outcome(data, unique_keys=True)
            assert isinstance(parsed, dict) == (problem is None)


def test_a_recursion_limit_that_was_raised_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan refuses before the recursive parser starts; with the scan passed, the parser's own guard is the last."""
    with pytest.raises(ConfigError, match="its header is nested too deeply"):
        parse_object(b'{"a":' + b"[" * 10_000, where="x", error=ConfigError, part="header")
    monkeypatch.setattr(bounded_json, "_check_bounds", lambda *args: None)
    with pytest.raises(ConfigError, match="is nested too deeply"):
        parse_object(b'{"a":' + b"[" * 100_000, where="x", error=ConfigError)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ("a\n'b", '"a\\n\'b"'),
        ("\ud800\u202e", r"'\ud800\u202e'"),
        ("a" * 100, "'" + "a" * 80 + "…'"),
        (10**100, "1" + "0" * 78 + "…"),
        ([1, [2]], "a list of 2"),
        ({"a": {}}, "an object of 1 keys"),
    ],
)
def test_values_are_shown_on_one_short_line(value: object, text: str) -> None:
    assert shown(value) == text
