"""Encodes a text in which only some literals of control tokens are real control tokens."""

from __future__ import annotations

import itertools
import json
import secrets
from threading import Lock
from typing import TYPE_CHECKING

from core.errors import TokenizerError
from core.text.backend import failure, is_failure
from core.text.fence import Fence

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding
    from tokenizers import Tokenizer as Backend


class FencedEncoder:
    """Encodes text in which only given places are control tokens.

    It has a copy of the tokenizer that does not recognise control tokens. The copy has markers instead: one for each
    set of matching rules (strip, normalize) of control tokens. A marker stands where a control token belongs, so the
    text around it is split, normalized and prefixed exactly as around the token itself.

    Args:
        backend: the tokenizer.
        control_ids: added tokens that are control tokens; the tokenizer need not mark them as special.
    """

    def __init__(self, backend: Backend, control_ids: frozenset[int]) -> None:
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._control = {token_id: added[token_id] for token_id in control_ids}
        # A text that becomes a control token's literal only by normalization cannot be found beforehand.
        self._normalizes = backend.normalizer is not None and any(token.normalized for token in self._control.values())
        self._lock = Lock()
        self._blind: Backend | None = None
        self._marker_of_rules: dict[tuple[bool, ...], str] = {}
        self._marker_ids: frozenset[int] = frozenset()

    def encode_text(self, text: str) -> list[int]:
        """``text`` as text only, at the start of a sequence."""
        return encode(self._blind_copy(), text)

    def encode_text_after_token(self, text: str) -> list[int]:
        """``text`` as text only, after a control token."""
        blind = self._blind_copy()
        return encode(blind, next(iter(self._marker_of_rules.values())) + text)[1:]

    def encode(self, fence: Fence) -> list[int]:
        """Ids of the chat that ``fence`` protects: the template's control tokens are real, those in values are text."""
        if not fence.needed and not self._normalizes:
            return encode(self._backend, fence.text)
        blind = self._blind_copy()
        marked, control = self._marked(fence.text)
        ids = encode(blind, fence.restore(marked))
        if sum(i in self._marker_ids for i in ids) != len(control):
            raise TokenizerError("the tokenizer does not keep control tokens apart from text")
        tokens = iter(control)
        return [next(tokens) if i in self._marker_ids else i for i in ids]

    def _marked(self, rendered: str) -> tuple[str, list[int]]:
        """``rendered`` with markers for the control tokens that the tokenizer itself finds, and the ids of these
        tokens."""
        encoding = _encoding(self._backend, rendered)
        pieces: list[str] = []
        control: list[int] = []
        done = 0
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            token = self._control.get(token_id)
            place = -1 if token is None else rendered.find(token.content, start, end)
            if token is None or place < 0:
                continue  # text: it only normalizes to a literal, or is not in the vocabulary
            pieces += rendered[done:place], self._marker_of_rules[_rules(token)]
            control.append(token_id)
            done = place + len(token.content)
        return "".join([*pieces, rendered[done:]]), control

    def _blind_copy(self) -> Backend:
        with self._lock:
            if self._blind is None:
                self._blind = self._make_blind_copy()
            return self._blind

    def _make_blind_copy(self) -> Backend:
        from tokenizers import AddedToken, Tokenizer

        state = self._backend.to_str()
        marked = {i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        if marked != set(self._control):
            parsed = json.loads(state)
            for entry in parsed["added_tokens"]:
                entry["special"] = entry["id"] in self._control
            state = json.dumps(parsed)
        blind = Tokenizer.from_str(state)
        blind.encode_special_tokens = True  # special tokens are read as text
        # A vocabulary without control tokens still needs a marker for "after a control token".
        for token in list(self._control.values()) or [AddedToken("")]:
            self._marker_of_rules.setdefault(_rules(token), f"~{secrets.randbits(128)}~")
        for (single_word, lstrip, rstrip, normalized), marker in self._marker_of_rules.items():
            rules = {"single_word": single_word, "lstrip": lstrip, "rstrip": rstrip, "normalized": normalized}
            blind.add_tokens([AddedToken(marker, special=False, **rules)])
        added = blind.get_added_tokens_decoder()
        self._marker_ids = frozenset(i for i, token in added.items() if token.content in self._marker_of_rules.values())
        return blind


def encode(backend: Backend, text: str) -> list[int]:
    """Ids of ``text`` alone, without BOS or EOS.

    Raises:
        TokenizerError: ``text`` is not valid Unicode (half of a surrogate pair).
    """
    ids: list[int] = _encoding(backend, text).ids
    return ids


def encode_with_ends(backend: Backend, text: str) -> tuple[list[int], list[int]]:
    """Ids of ``text``, and the end of each in it, in characters. Ends never decrease; the last one is the text's end.

    Raises:
        TokenizerError: as `encode`.
    """
    encoding = _encoding(backend, text)
    ends = list(itertools.accumulate((end for _, end in encoding.offsets), max))
    if ends:
        ends[-1] = len(text)  # text that a normalizer strips at the end belongs to the last token
    return encoding.ids, ends


def _encoding(backend: Backend, text: str) -> Encoding:
    try:
        return backend.encode(text, add_special_tokens=False)
    except TypeError as error:
        if not isinstance(text, str):
            raise TypeError(f"a prompt is a str, not {type(text).__name__}") from error
        raise TokenizerError("the text is not valid Unicode: it has half of a surrogate pair") from error
    except BaseException as error:
        if not is_failure(error):
            raise
        raise failure(f"a text of {len(text):,} characters", error) from error


def _rules(token: AddedToken) -> tuple[bool, bool, bool, bool]:
    return token.single_word, token.lstrip, token.rstrip, token.normalized
