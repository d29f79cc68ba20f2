"""Conversations as JSON files: read with checks, written whole or not at all.

The form is one object, ``{"corelm_conversation": 1, "model": …, "messages":
[…], "tools": […]}``; a bare list of messages is read too.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.chat.messages import Message, checked_messages, checked_tools
from core.errors import ConversationError

_KEY, _VERSION = "corelm_conversation", 1
_LIMIT = 256_000_000  # bytes of a file


@dataclass(frozen=True)
class StoredConversation:
    """What a file holds.

    Attributes:
        messages: all, a system message among them.
        tools: None where the file has none.
        model: what the conversation was held with, for the reader; it binds nobody.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = field(default=None)
    model: str | None = field(default=None)


def read_conversation(path: str | os.PathLike[str]) -> StoredConversation:
    """The conversation in a file.

    Raises:
        ConversationError: the file cannot be read, or holds no conversation.
    """
    value = read_json(path)
    where = os.fspath(path)
    if not isinstance(value, dict):
        return StoredConversation(checked_messages(value, where))
    if value.get(_KEY, _VERSION) != _VERSION:
        raise ConversationError(
            "is a conversation of another version", where=where, expected=_VERSION, found=value[_KEY]
        )
    if "messages" not in value:
        raise ConversationError("holds no messages", where=where, expected="a list of messages, or an object with one")
    tools, model = value.get("tools"), value.get("model")
    return StoredConversation(
        checked_messages(value["messages"], where),
        None if tools is None else checked_tools(tools, where),
        model if isinstance(model, str) else None,
    )


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file.

    Raises:
        ConversationError: the file cannot be read, is too large, or is not JSON in UTF-8.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise ConversationError(f"cannot be read: {_reason(error)}", where=path) from None
    if len(data) > _LIMIT:  # a device may have no end
        raise ConversationError("is too large", where=path, expected=f"at most {_LIMIT:,} bytes")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise ConversationError(f"is not valid JSON: {error}", where=path) from None
    except RecursionError:
        raise ConversationError("is JSON that is nested too deeply", where=path) from None


def write_conversation(
    path: str | os.PathLike[str],
    messages: Sequence[Message],
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    model: str | None = None,
) -> None:
    """Writes a conversation, in place of an earlier one; the file is complete at every moment.

    Raises:
        ConversationError: the file cannot be written, or is there and is no conversation.
    """
    try:
        target = Path(path).resolve()  # through a link, which stays one
        there = target.exists()
    except (OSError, ValueError, RuntimeError) as error:  # the last is a loop of links
        raise ConversationError(f"cannot be written: {_reason(error)}", where=path) from None
    if there and not _holds_conversation(target):
        raise ConversationError("is there, and is no conversation", where=path, hint="Choose a new name.")
    value: dict[str, Any] = {_KEY: _VERSION, "model": model, "messages": list(messages)}
    if tools is not None:
        value["tools"] = list(tools)
    data = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            with beside.open("x", encoding="utf-8") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
    except OSError as error:
        raise ConversationError(f"cannot be written: {_reason(error)}", where=path) from None


def _holds_conversation(path: Path) -> bool:
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        read_conversation(path)
    except ConversationError:
        return False
    return True


def _reason(error: Exception) -> str:
    """Why a path is of no use; one with a NUL in it is no ``OSError``."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
