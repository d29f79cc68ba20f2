"""Checks the messages of a conversation: roles, and contents that are text or parts of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.errors import ChatTemplateError

Messages = Sequence[Mapping[str, Any]]

PART_SEPARATOR = "\n"  # between text parts for a template that does not support parts; vLLM and llama.cpp use it too
_TEXT_PARTS = {"text": "text", "thinking": "thinking"}  # type of a part → the key of its text


def checked_conversation(messages: object) -> Messages:
    """``messages``, if they are a conversation of text.

    Raises:
        ChatTemplateError: not a list of messages, or a message with a part that is not text (an image, audio). Such a
            part is refused here, before any library fetches the URL or opens the file that it names.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise ChatTemplateError("a conversation is a list of messages", found=type(messages).__name__)
    if not messages:
        raise ChatTemplateError("the conversation is empty", expected="at least one message")
    for place, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError("a message is a mapping with a role and content", found=type(message).__name__)
        for part in parts_of(message.get("content")):
            _check_part(part, place)
    return messages


def parts_of(content: object) -> Sequence[Mapping[str, Any]]:
    """The parts of a content in OpenAI's form, ``[{"type": "text", "text": …}, …]``; empty for any other content."""
    if not isinstance(content, list | tuple) or not any(isinstance(part, Mapping) for part in content):
        return ()
    return content


class Parts(list[Any]):
    """The parts of one message, as given to a chat template, and how the template used them.

    Attributes:
        used: it iterated over them, or took one.
        printed: it printed the list itself, as templates do that treat every content as text.
    """

    used = printed = False

    def __iter__(self) -> Iterator[Any]:
        # Only taking a part counts as use: ``content is iterable`` takes none.
        for part in list.__iter__(self):
            self.used = True
            yield part

    def __getitem__(self, key: Any) -> Any:
        self.used = True
        return list.__getitem__(self, key)


def joined_parts(content: object, place: int) -> str:
    """The parts' text, joined by line ends.

    Raises:
        ChatTemplateError: a part that is text of another kind (thinking), which would be lost in a plain text.
    """
    texts = []
    for part in parts_of(content):
        if part.get("type", "text") != "text":
            raise ChatTemplateError(
                f"message {place} has a part of the type {_shown(part['type'])}, and the chat template takes text only",
                hint="Leave the part out, or give the message's content as one text.",
            )
        texts.append(part["text"])
    return PART_SEPARATOR.join(texts)


def _check_part(part: object, place: int) -> None:
    if not isinstance(part, Mapping):
        raise ChatTemplateError(
            f"message {place} mixes parts with other values",
            expected='{"type": "text", "text": …}',
            found=type(part).__name__,
        )
    kind = part.get("type", "text")
    key = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise ChatTemplateError(
            f"message {place} has a part of the type {_shown(kind)}, and models are given text only",
            hint="Leave the part out: images, audio and files are not read.",
        )
    # Thinking is text, or a list of text parts.
    if not isinstance(part.get(key), str):
        inner = parts_of(part.get(key)) if kind == "thinking" else ()
        if not inner:
            raise ChatTemplateError(
                f"message {place} has a part of the type {kind!r} without text", expected=f'"{key}": a string'
            )
        for item in inner:
            if not isinstance(item, Mapping) or item.get("type", "text") != "text":
                raise ChatTemplateError(f"message {place} has a part of the type 'thinking' that holds other than text")
            _check_part(item, place)


def _shown(kind: object) -> str:
    text = repr(kind)
    return text if len(text) <= 40 else f"{text[:39]}…"
