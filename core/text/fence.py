"""Keeps text that users wrote from becoming control tokens.

A message may contain ``[INST]`` or ``</s>``. Rendered into a template and tokenized, that would be the real control
token, and whoever wrote the message would speak with the template's voice. So before rendering, each such literal in
the data is replaced by a sentinel that nobody can guess; what reads like a control token afterwards was written by the
template. Then the template's tokens are exchanged for markers, the literals come back, and the text is encoded by a
tokenizer that knows the markers and treats everything else as text. mistral-common has the same rule by construction:
it never tokenizes control tokens and text together.

Knows literals, sentinels and ``tokenizers``; knows nothing of templates or roles.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.errors import ChatTemplateError

if TYPE_CHECKING:
    pass

# Digits and a point between tildes survive every filter that a template may apply to a whole string: case, JSON, HTML
# and URL escapes, trimming. And they are no number, so that a template does not take the string for one.
_DIGITS = 32
_REMNANT = 12  # this many digits of a nonce do not occur by chance


class Literals:
    """The special tokens' literals of one vocabulary, and where a string contains one or part of one."""

    def __init__(self, literals: frozenset[str]) -> None:
        ordered = sorted((text for text in literals if text), key=lambda text: (-len(text), text))
        self.pattern = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
        self._longest = len(ordered[0]) if ordered else 0
        self._heads = {text[:end] for text in ordered for end in range(1, len(text))}
        self._tails = {text[start:] for text in ordered for start in range(1, len(text))}

    def open_end(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a literal: what follows could complete it."""
        return self._partial(text, self._heads, -1)

    def open_start(self, text: str) -> int:
        """Length of the longest start of ``text`` that ends a literal."""
        return self._partial(text, self._tails, 1)

    def _partial(self, text: str, parts: set[str], side: int) -> int:
        for size in range(min(self._longest, len(text)), 0, -1):
            part = text[:size] if side > 0 else text[-size:]
            # A word alone ("user", "text") is what templates compare with and build tokens from: it stays readable.
            if part in parts and not part.isalnum():
                return size
        return 0


class Fence:
    """Plain copies of one conversation's data with sentinels in place of literals.

    Attributes:
        needed: whether anything was replaced.
    """

    def __init__(self, literals: Literals) -> None:
        self._literals = literals
        self._nonce = "".join(secrets.choice("0123456789") for _ in range(_DIGITS))
        self._replaced: dict[str, int] = {}

    @property
    def needed(self) -> bool:
        return bool(self._replaced)

    def protect(self, value: object, key: object = None) -> Any:
        """``value`` rebuilt out of plain data. Strings in it, keys too, contain no literal any more.

        Strings that begin or end with a part of a literal lose that part as well, so that two strings, or a string and
        the template's own text, cannot form one together.

        Raises:
            ChatTemplateError: something that is neither text, number, list nor mapping.
        """
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._protect_text(str.__str__(value), whole_only=key == "role")
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, Mapping):
            return {
                self._protect_text(name, whole_only=True) if isinstance(name, str) else name: self.protect(item, name)
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.protect(item) for item in value]
        dump = getattr(value, "model_dump", None)
        if callable(dump):
            return self.protect(dump())
        raise ChatTemplateError(f"the conversation holds a {type(value).__name__}, which is not plain data")

    def restore(self, text: str) -> str:
        """``text`` with the literals back in place of the sentinels.

        Raises:
            ChatTemplateError: the template took a sentinel apart, so that what it did to the literal is unknown.
        """
        if not self.needed:
            return text
        literals = list(self._replaced)
        restored = re.sub(rf"~{self._nonce}\.(\d+)~", lambda match: literals[int(match[1])], text)
        windows = (self._nonce[i : i + _REMNANT] for i in range(_DIGITS - _REMNANT + 1))
        if any(window in restored for window in windows):
            raise ChatTemplateError(
                f"the chat template cuts text that contains a control token's literal ({literals[0]!r})",
                hint="Remove the literal from the messages: this template cannot keep it apart from control tokens.",
            )
        return restored

    def _protect_text(self, text: str, *, whole_only: bool) -> str:
        start = 0 if whole_only else self._literals.open_start(text)
        end = len(text) - (0 if whole_only else self._literals.open_end(text))
        if text and start >= end:  # the two parts meet: nothing but parts of literals
            return self._sentinel(text)
        middle = self._literals.pattern.sub(lambda match: self._sentinel(match[0]), text[start:end])
        head = self._sentinel(text[:start]) if start else ""
        tail = self._sentinel(text[end:]) if end < len(text) else ""
        return head + middle + tail

    def _sentinel(self, literal: str) -> str:
        # One sentinel for one literal: templates compare messages with each other.
        place = self._replaced.setdefault(literal, len(self._replaced))
        return f"~{self._nonce}.{place}~"
