"""Converts a conversation's values for a chat template: plain data whose text is marked as the values'."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from core.errors import ChatTemplateError
from core.text.content import Messages, Parts, joined_parts, parts_of
from core.text.origin import GIVEN, UNKNOWN, WRITTEN, Traced

_MAX_DEPTH = 100
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def given(value: object, *, depth: int = 0) -> Any:
    """``value`` rebuilt from plain data. Its strings, keys included, are `Traced` as given.

    Raises:
        ChatTemplateError: something that is not text, number, list or mapping, or is nested too deeply.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, GIVEN)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if depth > _MAX_DEPTH:
        raise ChatTemplateError("the conversation is nested too deeply", expected=f"at most {_MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {
            _text(name, GIVEN) if isinstance(name, str) else name: given(item, depth=depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [given(item, depth=depth + 1) for item in value]
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return given(dump(), depth=depth + 1)
    raise ChatTemplateError(f"the conversation holds a {type(value).__name__}, which is not plain data")


def given_messages(messages: Messages, mentioned: str, joined: Collection[int]) -> list[dict[str, Any]]:
    """The messages in the form that a template gets.

    A usual role, or one that the template names, counts as the template's text: templates make control tokens out of it
    (``<|user|>``). If another role makes one, it is unknown whether it should.

    Args:
        messages: of the conversation.
        mentioned: the words of the template's own expressions.
        joined: which messages' parts are joined to one text, by number from 0.
    """
    made = []
    for place, message in enumerate(messages):
        plain = given(message)
        role = str(message["role"])
        plain["role"] = _text(role, WRITTEN if role in _ROLES or _is_word(role, mentioned) else UNKNOWN)
        content = message.get("content")
        if parts_of(content):
            whole = place in joined
            plain["content"] = _text(joined_parts(content, place + 1), GIVEN) if whole else Parts(plain["content"])
        made.append(plain)
    return made


def _is_word(role: str, mentioned: str) -> bool:
    return role.replace("_", "").isalnum() and role in mentioned.split("\n")


def _text(value: str, kind: bytes) -> Traced:
    return Traced(str.__str__(value), kind * len(value))
