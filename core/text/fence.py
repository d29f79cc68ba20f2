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
from threading import Lock
from typing import TYPE_CHECKING, Any

from core.errors import ChatTemplateError, TokenizerError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

# Digits between tildes survive every filter that a template may apply to a whole string: case, JSON and HTML and URL
# escapes, trimming; and are no number, so that a template does not take the string for one.
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
        self._replaced: list[str] = []

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
        restored = re.sub(rf"~{self._nonce}:(\d+)~", lambda match: self._replaced[int(match[1])], text)
        windows = (self._nonce[i : i + _REMNANT] for i in range(_DIGITS - _REMNANT + 1))
        if any(window in restored for window in windows):
            raise ChatTemplateError(
                f"the chat template cuts text that contains a control token's literal ({self._replaced[0]!r})",
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
        self._replaced.append(literal)
        return f"~{self._nonce}:{len(self._replaced) - 1}~"


class FencedEncoder:
    """Encodes text in which only given places are control tokens.

    It holds a copy of the tokenizer in which special tokens are not recognised, and markers, one for each set of
    matching rules (strip, normalize) that special tokens have, are. A marker stands where a control token belongs, so
    that the text around it is split, normalized and prefixed just as around the token itself.
    """

    def __init__(self, backend: Backend, special_ids: frozenset[int]) -> None:
        self._backend = backend
        self._special_ids = special_ids
        self._lock = Lock()
        self._blind: Backend | None = None
        self._literals: dict[int, str] = {}
        self._markers: dict[int, str] = {}
        self._any_marker = ""
        self._marker_ids: frozenset[int] = frozenset()

    def encode_text(self, text: str) -> list[int]:
        """``text`` as nothing but text, at the start of a sequence."""
        ids: list[int] = self._copy().encode(text, add_special_tokens=False).ids
        return ids

    def encode_text_after_token(self, text: str) -> list[int]:
        """``text`` as nothing but text, as it is encoded after a control token."""
        blind = self._copy()
        ids: list[int] = blind.encode(self._any_marker + text, add_special_tokens=False).ids
        return ids[1:]

    def encode(self, rendered: str, fence: Fence) -> list[int]:
        """``rendered``, made of data that ``fence`` protected: its control tokens are real, the data's are text."""
        blind = self._copy()
        encoding = self._backend.encode(rendered, add_special_tokens=False)
        parts: list[str] = []
        control: list[int] = []
        done = 0
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id not in self._special_ids:
                continue
            literal = self._literals[token_id]
            place = rendered.find(literal, start, end)
            if place < 0:
                continue  # text that only normalizes to the literal, or that the vocabulary does not know
            parts += rendered[done:place], self._markers[token_id]
            control.append(token_id)
            done = place + len(literal)
        parts.append(rendered[done:])
        ids: list[int] = blind.encode(fence.restore("".join(parts)), add_special_tokens=False).ids
        if sum(i in self._marker_ids for i in ids) != len(control):
            raise TokenizerError("the tokenizer does not keep control tokens apart from text")
        tokens = iter(control)
        return [next(tokens) if i in self._marker_ids else i for i in ids]

    def _copy(self) -> Backend:
        with self._lock:
            if self._blind is None:
                self._blind = self._make_copy()
            return self._blind

    def _make_copy(self) -> Backend:
        from tokenizers import AddedToken, Tokenizer

        blind = Tokenizer.from_str(self._backend.to_str())
        blind.encode_special_tokens = True
        tokens = self._backend.get_added_tokens_decoder()
        # A vocabulary without special tokens still needs a marker for "after a control token".
        special = [tokens[token_id] for token_id in self._special_ids] or [AddedToken("")]
        by_rules = {_rules(token): f"~{secrets.randbits(128)}~" for token in special}
        for (single_word, lstrip, rstrip, normalized), marker in by_rules.items():
            rules = {"single_word": single_word, "lstrip": lstrip, "rstrip": rstrip, "normalized": normalized}
            blind.add_tokens([AddedToken(marker, special=False, **rules)])
        self._literals = {token_id: tokens[token_id].content for token_id in self._special_ids}
        self._markers = {token_id: by_rules[_rules(tokens[token_id])] for token_id in self._special_ids}
        self._any_marker = next(iter(by_rules.values()))
        added = blind.get_added_tokens_decoder()
        self._marker_ids = frozenset(i for i, token in added.items() if token.content in by_rules.values())
        return blind


def _rules(token: AddedToken) -> tuple[bool, bool, bool, bool]:
    return token.single_word, token.lstrip, token.rstrip, token.normalized
