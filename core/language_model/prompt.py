"""What a prompt becomes: ids, whichever of its three forms it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.errors import TokenizerError, UsageError

if TYPE_CHECKING:
    from core.text import NativeTokenizer, Tokenizer

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A raw text, token ids, or a conversation: a list of messages with ``role`` and ``content``."""


def prompt_ids(
    prompt: Prompt,
    tokenizer: Tokenizer | NativeTokenizer | None,
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    begins: bool,
) -> list[int]:
    """The ids of a prompt; arguments and errors are those of ``LanguageModel.encode``."""
    if isinstance(prompt, bytes | bytearray):
        raise UsageError("a prompt is text, not bytes", hint='Decode it: data.decode("utf-8").')
    if hasattr(prompt, "tolist"):  # an array of ids
        prompt = prompt.tolist()
    given: Any = prompt  # whatever a caller without type checks gives
    if not isinstance(given, Sequence):
        raise UsageError("a prompt is a string, a list of ids or a list of messages", found=repr(given)[:60])
    if not isinstance(prompt, str) and all(isinstance(item, int) for item in prompt):
        return [item for item in prompt if isinstance(item, int)]
    if tokenizer is None:
        raise TokenizerError("this model was loaded without a tokenizer", hint="Pass token ids, or load with one.")
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special_tokens=begins)
    messages = [item for item in prompt if isinstance(item, Mapping)]
    if len(messages) != len(prompt):
        raise UsageError("a prompt is a string, a list of ids or a list of messages", found="a list of other things")
    ids = tokenizer.encode_chat(messages, tools=tools)
    return ids[1:] if not begins and ids[:1] == [tokenizer.bos_id] else ids


def continues_text(prompt: Prompt) -> bool:
    """Whether what is generated goes on from the prompt's text; after a list of messages, an answer begins."""
    return not isinstance(next(iter(prompt), None), Mapping)
