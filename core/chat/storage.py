"""Reads and writes conversations as JSON files: read with checks, written completely or not at all.

The format is one object, ``{"corelm_conversation": 1, "model": …, "messages": […], "tools": […]}``. A bare list of
messages can be read too.
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
    """The content of a file.

    Attributes:
        messages: all, a system message among them.
        tools: None where the file has none.
        model: the model that generated the answers, for information only.
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
    if len(data) > _LIMIT:  # a device file may have no end
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
    """Writes a conversation, and replaces an earlier one. The file is complete at every moment.

    Raises:
        ConversationError: the file cannot be written, or exists and is not a conversation.
    """
    try:
        target = Path(path).resolve()  # follow a link, so that it stays a link
        there = target.exists()
    except (OSError, ValueError, RuntimeError) as error:  # the last is a loop of links
        raise ConversationError(f"cannot be written: {_reason(error)}", where=path) from None
    if there and not _holds_conversation(target):
        raise ConversationError("exists, and is not a conversation", where=path, hint="Choose a new name.")
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
    if not path.is_file():  # opening a pipe would wait for its writer
        return False
    try:
        read_conversation(path)
    except ConversationError:
        return False
    return True


def _reason(error: Exception) -> str:
    """Why a path cannot be used. A path with a NUL in it raises no ``OSError``."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
