"""Prevents text in values from becoming control tokens, in a rendered chat.

A message may contain ``[INST]`` or ``</s>``. Rendered into a template and tokenized, that would become the real control
token, and the message's author could imitate the template. The rendered text records who wrote each of its characters
(`core.text.origin`), and a literal is a control token only where the template wrote all of it. Everywhere else, a
value's characters in a literal are replaced by a sentinel that nobody can guess. Then the remaining literals are
replaced by markers, the characters are restored, and the text is encoded by a tokenizer that recognises the markers and
treats everything else as text. mistral-common follows the same rule by construction: it never tokenizes control tokens
and text together.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

from core.errors import ChatTemplateError
from core.text.origin import GIVEN, WRITTEN, Traced

_DIGITS = 32
_RUN = re.compile(b"[^" + WRITTEN + b"]+")


class Literals:
    """The control tokens' literals of one vocabulary; finds them in a text."""

    def __init__(self, literals: frozenset[str]) -> None:
        ordered = sorted((text for text in literals if text), key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of the literals in ``text``, the longest at each place. They may overlap."""
        match = self._pattern.search(text)
        while match is not None:
            yield match.span()
            match = self._pattern.search(text, match.start() + 1)


class Fence:
    """A rendered chat with sentinels in place of values' text that looks like control tokens.

    Attributes:
        text: the chat with sentinels.
        needed: whether anything was replaced.

    Raises:
        ChatTemplateError: the chat has a literal that the template or a value may have written; it is unknown which.
    """

    def __init__(self, literals: Literals, rendered: Traced) -> None:
        self._nonce = "".join(secrets.choice("0123456789") for _ in range(_DIGITS))
        self._replaced: dict[str, int] = {}
        text = str.__getitem__(rendered, slice(None))
        pieces: list[str] = []
        done = 0
        for start, end in literals.spans(text):
            origin = rendered.origin[start:end]
            if origin == WRITTEN * (end - start):
                continue
            if GIVEN not in origin:
                raise _unknown(text[start:end])
            for run in _RUN.finditer(rendered.origin, max(start, done), end):
                pieces += text[done : run.start()], self._sentinel(text[run.start() : run.end()])
                done = run.end()
        self.text = "".join([*pieces, text[done:]])

    @property
    def needed(self) -> bool:
        return bool(self._replaced)

    def restore(self, text: str) -> str:
        """``text`` with the characters restored in place of the sentinels."""
        if not self.needed:
            return text
        replaced = list(self._replaced)
        return re.sub(rf"~{self._nonce}\.(\d+)~", lambda match: replaced[int(match[1])], text)

    def _sentinel(self, characters: str) -> str:
        place = self._replaced.setdefault(characters, len(self._replaced))
        return f"~{self._nonce}.{place}~"


def _unknown(literal: str) -> ChatTemplateError:
    shown = literal if len(literal) <= 60 else f"{literal[:59]}…"
    return ChatTemplateError(
        f"the chat template makes the control token {shown!r} out of text that may be a message's",
        hint="With this template it is unknown whether it is the template's or the message's. Remove the literal "
        "from the messages, or give a message another role.",
    )
