"""Mistral's instruction formats, for checkpoints that come without a chat template.

A conversation becomes control tokens and pieces of text that are tokenized one by one, as in `mistral-common` (versions
v1, v3 and v7). The version is recognised by the vocabulary:

* v1 has no control tokens for instructions: ``[INST]`` is text. Mistral-7B v0.1 and v0.2, Mixtral-8x7B.
* v3 has ``[INST]`` as a token, and the system prompt goes into the last user message. v2 has the same vocabulary, the
  same format for plain conversations and differs in tools only; v3 is assumed.
* v7 has ``[SYSTEM_PROMPT]`` too. Later versions equal v7 for conversations without tools; with tools they are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from core.errors import ChatTemplateError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Message = Mapping[str, Any]

_SEPARATOR = "\n\n"
# Pieces of "[INST]" in the 32,000-token vocabulary of Mistral's v1. Llama's, of the same size, has other pieces there.
_V1_PIECES = {733: "▁[", 16289: "INST", 28793: "]"}


@dataclass(frozen=True)
class Part:
    """A piece of a prompt: a control token's literal, or text to be tokenized by itself."""

    text: str
    is_control: bool = False


@dataclass(frozen=True)
class Instruct:
    """The instruction format of one vocabulary.

    Attributes:
        version: 1, 3 or 7.
        bos, eos: literals.
        tools: whether this vocabulary's format for tools is known.
    """

    version: int
    bos: str
    eos: str
    tools: bool

    @classmethod
    def of(cls, backend: Backend, special_ids: frozenset[int], bos: str | None, eos: str | None) -> Instruct | None:
        """The format of a vocabulary; None for vocabularies that are not Mistral's."""

        def has(literal: str) -> bool:
            return backend.token_to_id(literal) in special_ids

        if bos is None or eos is None:
            return None
        if has("[INST]") and has("[/INST]"):
            version = 7 if has("[SYSTEM_PROMPT]") and has("[/SYSTEM_PROMPT]") else 3
            return cls(version, bos, eos, tools=has("[TOOL_CALLS]") and not has("[ARGS]"))
        if all(backend.id_to_token(token_id) == piece for token_id, piece in _V1_PIECES.items()):
            return cls(1, bos, eos, tools=False)
        return None

    def parts(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> list[Part]:
        """The prompt of a conversation.

        Raises:
            ChatTemplateError: a conversation that the format cannot express.
        """
        if tools and not self.tools:
            raise _refused("cannot express tools", "Add the model's own chat_template.jinja to the checkpoint.")
        turns = self._normalized(messages)
        users = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
        system = None if self.version >= 7 else _SEPARATOR.join(filter(None, map(_system_text, messages)))
        system_at = (users[:1] if self.version == 1 else users[-1:]) if system else []
        parts = [Part(self.bos, is_control=True)]
        for i, turn in enumerate(turns):
            role = turn["role"]
            if role == "user":
                if tools and i == users[-1]:
                    parts += self._wrapped("AVAILABLE_TOOLS", _json([_tool(tool) for tool in tools]))
                content = f"{system}{_SEPARATOR}{turn['content']}" if i in system_at else turn["content"]
                parts += [Part(f"[INST] {content} [/INST]")] if self.version == 1 else self._wrapped("INST", content)
            elif role == "assistant":
                parts += self._assistant(turn, last=i == len(turns) - 1)
            elif role == "system":
                parts += self._wrapped("SYSTEM_PROMPT", turn["content"])
            else:
                parts += self._tool_result(turn)
        return [part for part in parts if part.text]

    def _normalized(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """One turn for each run of user or assistant messages. Tool messages, and from v7 on system messages, stay
        single."""
        turns: list[dict[str, Any]] = []
        for role, run in groupby(messages, key=lambda message: message.get("role")):
            group = list(run)
            if role in ("user", "assistant"):
                calls = [call for message in group for call in message.get("tool_calls") or ()]
                content = _SEPARATOR.join(filter(None, (_text(message, allow_none=True) for message in group)))
                prefix = any(message.get("prefix") for message in group)
                turns.append({"role": role, "content": content, "tool_calls": calls, "prefix": prefix})
            elif role == "system":
                if self.version >= 7:
                    turns += ({"role": role, "content": _text(message)} for message in group)
            elif role == "tool":
                turns += ({**message, "content": _text(message)} for message in group)
            else:
                raise _refused(f"knows the roles system, user, assistant and tool, not {role!r}")
        if self.version < 7 and (not turns or turns[0]["role"] != "user"):
            turns.insert(0, {"role": "user", "content": ""})
        return turns

    def _assistant(self, turn: Message, *, last: bool) -> Iterable[Part]:
        content, calls = turn["content"], turn["tool_calls"]
        if not content and not calls:
            raise _refused("cannot express an assistant message without content")
        if calls and not self.tools:
            raise _refused("cannot express tool calls", "Add the model's own chat_template.jinja to the checkpoint.")
        if calls and content and self.version < 7:
            raise _refused("cannot express an assistant message that has both content and tool calls")
        if turn["prefix"] and not last:
            raise _refused("takes an assistant message with a prefix as the last one only")
        if content:
            yield Part(content if self.version == 1 else content.rstrip(" "))
        if calls:
            yield Part("[TOOL_CALLS]", is_control=True)
            yield Part(_json([_call(call) for call in calls]))
        if not turn["prefix"]:
            yield Part(self.eos, is_control=True)

    def _tool_result(self, turn: Message) -> list[Part]:
        if not self.tools:
            raise _refused("cannot express tool results", "Add the model's own chat_template.jinja to the checkpoint.")
        call_id = turn.get("tool_call_id")
        if not isinstance(call_id, str):
            raise _refused("needs the tool_call_id of a tool message")
        if self.version < 7:
            return self._wrapped("TOOL_RESULTS", _json({"content": _parsed(turn["content"]), "call_id": call_id}))
        return [
            Part("[TOOL_RESULTS]", is_control=True),
            Part(call_id),
            Part("[TOOL_CONTENT]", is_control=True),
            Part(turn["content"]),
            Part("[/TOOL_RESULTS]", is_control=True),
        ]

    @staticmethod
    def _wrapped(name: str, text: str) -> list[Part]:
        return [Part(f"[{name}]", is_control=True), Part(text), Part(f"[/{name}]", is_control=True)]


def _text(message: Message, *, allow_none: bool = False) -> str:
    """A message's content; text chunks are joined in the same way as messages."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and allow_none:
        return ""
    if isinstance(content, list) and all(isinstance(chunk, Mapping) for chunk in content):
        other = [chunk.get("type") for chunk in content if not isinstance(chunk.get("text"), str)]
        if not other:
            return _SEPARATOR.join(chunk["text"] for chunk in content if chunk["text"])
        raise _refused(f"takes text only, not {other[0]!r}")
    raise _refused(f"takes content as text, not as {type(content).__name__}")


def _system_text(message: Message) -> str:
    return _text(message) if message.get("role") == "system" else ""


def _tool(tool: Message) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _refused("takes tools as {type: function, function: {name, description, parameters}}")
    described = {"name": function["name"], "description": function.get("description") or ""}
    return {"type": "function", "function": {**described, "parameters": function.get("parameters") or {}}}


def _call(call: Message) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or "name" not in function:
        raise _refused("takes tool calls as {id, function: {name, arguments}}")
    arguments = function.get("arguments")
    made = {
        "name": function["name"],
        "arguments": _parsed(arguments) if isinstance(arguments, str) else arguments or {},
    }
    call_id = call.get("id")
    return {**made, "id": call_id} if call_id and call_id != "null" else made


def _parsed(content: str) -> Any:
    """The parsed JSON if the text is JSON, as in the models' training; an empty text gives an empty object."""
    try:
        return json.loads(content or "{}")
    except (ValueError, RecursionError):
        return content


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _refused(what: str, hint: str | None = None) -> ChatTemplateError:
    return ChatTemplateError(f"the model's instruction format {what}", hint=hint)
