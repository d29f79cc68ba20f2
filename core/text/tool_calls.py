"""Parses tool calls in the ids that a model generated, in Mistral's formats. Calls are not executed.

A control token is recognised by its id: its literal in a model's text, ``[TOOL_CALLS]`` spelled in letters, starts no
call. The formats are mistral-common's:

* up to v7, one list for all calls: ``[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]``, with an ``id`` in some;
* v11, a control token for each call: ``[TOOL_CALLS] name [CALL_ID] id [ARGS] {…}``;
* v13, the same without the id: ``[TOOL_CALLS] name [ARGS] {…}``.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

TOOL_CALLS = "[TOOL_CALLS]"
_CALL_ID, _ARGS = "[CALL_ID]", "[ARGS]"
_ID = re.compile(r"[a-zA-Z0-9]{9}")  # the only form of a call's id that mistral-common accepts
_ALPHABET = string.digits + string.ascii_letters


class Vocabulary(Protocol):
    """The part of a tokenizer that is needed here; the tokenizers of ``core.text`` have it."""

    @property
    def special_ids(self) -> Collection[int]: ...

    def token_of(self, token_id: int) -> str: ...

    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model asks for.

    Attributes:
        name: of the function.
        arguments: by name, as in JSON.
        id: nine letters and digits, which the message with the result repeats; the model's own if it wrote one.
    """

    name: str
    arguments: dict[str, Any]
    id: str

    def as_message(self) -> dict[str, Any]:
        """The call in the form of an assistant message's ``tool_calls``: OpenAI's form, with the arguments as an
        object."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """The content of generated ids.

    Attributes:
        text: the text beside the calls; all of it, if there are no calls or they are malformed.
        calls: in the order in which they were written; all that were begun, or none.
        problem: why ids that begin a call are not one, in one sentence; else None.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    problem: str | None = None


class _MalformedError(Exception):
    """The reason why something is not a call."""


def parse_tool_calls(ids: Sequence[int], tokenizer: Vocabulary, *, turn: int = 0) -> ToolCalls:
    """Text and calls of an answer's ids. Malformed or incomplete calls stay text; they raise no error.

    Args:
        ids: the generated ids, with or without an end-of-sequence token.
        tokenizer: of the model that made them.
        turn: the number of the answer in its conversation. Ids of calls are computed from it and from the call, so
            equal calls of different answers get different ids, and the same ones each time.

    Raises:
        TokenizerError: no token has one of the ids.
    """
    special = {token_id for token_id in ids if token_id in tokenizer.special_ids}
    forms = {token_id: tokenizer.token_of(token_id) for token_id in special}
    if TOOL_CALLS not in forms.values():
        return ToolCalls(tokenizer.decode(ids))
    before, *begun = _split(ids, {i for i, form in forms.items() if form == TOOL_CALLS})
    try:
        found = [call for part in begun for call in _calls(part, forms, tokenizer)]
    except _MalformedError as error:
        return ToolCalls(tokenizer.decode(ids), problem=str(error))
    calls = tuple(
        ToolCall(name, arguments, _made_id(turn, place, name, arguments) if call_id is None else call_id)
        for place, (name, arguments, call_id) in enumerate(found)
    )
    if len({call.id for call in calls}) < len(calls):
        return ToolCalls(tokenizer.decode(ids), problem="two calls have the same id")
    return ToolCalls(tokenizer.decode(before), calls)


def _split(ids: Sequence[int], at: Collection[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token_id in ids:
        if token_id in at:
            parts.append([])
        else:
            parts[-1].append(token_id)
    return parts


_Call = tuple[str, dict[str, Any], str | None]


def _calls(part: list[int], forms: dict[int, str], tokenizer: Vocabulary) -> list[_Call]:
    """The calls between one ``[TOOL_CALLS]`` and the next."""
    head, *rest = _split(part, {i for i, form in forms.items() if form == _ARGS})
    if len(rest) > 1:
        raise _MalformedError(f"a call has {_ARGS} twice")
    if not rest:
        return _listed(_json(tokenizer.decode(part)))
    names, *call_ids = _split(head, {i for i, form in forms.items() if form == _CALL_ID})
    if len(call_ids) > 1:
        raise _MalformedError(f"a call has {_CALL_ID} twice")
    call_id = tokenizer.decode(call_ids[0]).strip() if call_ids else None
    return [_call(tokenizer.decode(names).strip(), _json(tokenizer.decode(rest[0])), call_id)]


def _listed(value: Any) -> list[_Call]:
    if not isinstance(value, list) or not value:
        raise _MalformedError(f"what follows {TOOL_CALLS} is not a list of calls")
    for item in value:
        if not isinstance(item, dict) or "name" not in item or not item.keys() <= {"name", "arguments", "id"}:
            raise _MalformedError("a call is an object with name, arguments and perhaps an id")
    return [_call(item["name"], item.get("arguments", {}), item.get("id")) for item in value]


def _call(name: object, arguments: object, call_id: object) -> _Call:
    if not isinstance(name, str) or not name or not name.isprintable() or " " in name:
        raise _MalformedError("a call has no name")
    if isinstance(arguments, str):  # JSON within JSON, as OpenAI's interface has it
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        raise _MalformedError(f"the arguments of {name} are not an object")
    # An id of another form could not be repeated in the result's message.
    return name, arguments, call_id if isinstance(call_id, str) and _ID.fullmatch(call_id) else None


def _json(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # fails for half a surrogate pair, which no prompt could hold
    except (ValueError, RecursionError) as error:
        raise _MalformedError(f"a call is not valid JSON: {error}") from None
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _made_id(turn: int, place: int, name: str, arguments: dict[str, Any]) -> str:
    said = json.dumps([turn, place, name, arguments], ensure_ascii=False, sort_keys=True)
    number = int.from_bytes(hashlib.sha256(said.encode()).digest())
    digits = []
    for _ in range(9):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(digits)
