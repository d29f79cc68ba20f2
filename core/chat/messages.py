"""Messages as plain data: checks what a conversation may hold, and finds its turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import ConversationError
from core.text.tool_calls import ToolCalls

Message = dict[str, Any]

_MAX_DEPTH = 100  # nesting of lists and objects; schemas of tools have about ten levels

INTERRUPTED = "interrupted"
"""The key that marks an answer which was stopped before its end. It is removed before a template gets the message."""


def checked_messages(value: object, where: str | None = None) -> list[Message]:
    """``value`` as messages, in dictionaries of their own.

    A message is an object with a ``role`` and a ``content``: text, or a list of objects (``{"type": "text", …}``). An
    assistant's may have ``tool_calls`` and no content; a tool's has a ``tool_call_id``. Other keys are passed to the
    template.

    Args:
        value: a list of objects.
        where: the file that they came from, for errors.

    Raises:
        ConversationError: anything else, with the place of the message.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ConversationError("a conversation is a list of messages", where=where, found=type(value).__name__)
    messages = []
    for place, item in enumerate(value, start=1):
        problem = _problem(item)
        if problem is not None:
            raise ConversationError(f"message {place} of {len(value)}: {problem}", where=where)
        messages.append(dict(item))
    return messages


def checked_tools(value: object, where: str | None = None) -> list[dict[str, Any]]:
    """``value`` as descriptions of tools: JSON schemas in OpenAI's form, as templates take them.

    Raises:
        ConversationError: anything else.
    """
    expected = 'a list of {"type": "function", "function": {"name": …, "description": …, "parameters": …}}'
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ConversationError("tools are a list", where=where, expected=expected, found=type(value).__name__)
    for place, tool in enumerate(value, start=1):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ConversationError(f"tool {place} of {len(value)} is not valid", where=where, expected=expected)
        problem = problem_within(tool)
        if problem is not None:
            raise ConversationError(f"tool {place} of {len(value)} {problem}", where=where)
    return [dict(tool) for tool in value]


def turns(messages: Sequence[Message]) -> list[int]:
    """Where turns begin: at each user message. Messages before the first belong to the first turn."""
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    return [0, *users[1:]] if users else [0] if messages else []


def answered(said: ToolCalls, *, interrupted: bool) -> Message:
    """The message for an answer. It has no ``content`` if the answer has calls only, as templates expect."""
    message: Message = {"role": "assistant"}
    if said.text:
        message["content"] = said.text
    if said.calls:
        message["tool_calls"] = [call.as_message() for call in said.calls]
    if interrupted:
        message[INTERRUPTED] = True
    return message


def shown(message: Message) -> Message:
    """The message as a template gets it."""
    return {key: value for key, value in message.items() if key != INTERRUPTED}


def _problem(item: object) -> str | None:
    if not isinstance(item, Mapping):
        return f"is not an object but {type(item).__name__}"
    role = item.get("role")
    if not isinstance(role, str) or not role:
        return "has no role"
    content, calls = item.get("content"), item.get("tool_calls")
    if calls is not None:
        if role != "assistant":
            return f"has tool calls, and the role {role!r}"
        if not _are_calls(calls):
            return 'tool_calls is not a list of {"id": …, "function": {"name": …, "arguments": …}}'
    if content is None:
        if not calls:
            return "has no content"
    elif not isinstance(content, str) and not _are_chunks(content):
        return f"content is neither text nor a list of objects, but {type(content).__name__}"
    if role == "tool" and not isinstance(item.get("tool_call_id", ""), str):
        return "tool_call_id is not text"
    if not isinstance(item.get(INTERRUPTED, True), bool):
        return f"{INTERRUPTED} is neither true nor false"
    return problem_within(item)


def _are_chunks(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(chunk, Mapping) for chunk in content)


def _are_calls(calls: object) -> bool:
    if not isinstance(calls, list):
        return False
    functions = [call.get("function") if isinstance(call, Mapping) else None for call in calls]
    return all(
        isinstance(function, Mapping)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments", {}), Mapping | str)
        for function in functions
    )


def problem_within(value: object) -> str | None:
    """Why plain data cannot be put into a template or a file; None if it can."""
    left: list[tuple[object, int]] = [(value, 1)]
    while left:
        item, depth = left.pop()
        if isinstance(item, str):
            if not item.isascii() and any("\ud800" <= character <= "\udfff" for character in item):
                return "holds text that is not valid Unicode (half a surrogate pair)"
            continue
        if not isinstance(item, Mapping | list | tuple):
            continue
        if depth > _MAX_DEPTH:
            return f"is nested more than {_MAX_DEPTH} deep"
        inner = [*item.keys(), *item.values()] if isinstance(item, Mapping) else item
        left += [(one, depth + 1) for one in inner]
    return None
