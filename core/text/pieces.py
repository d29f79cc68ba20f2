"""``Pieces``: the text that single tokens add, for each kind of decoder in ``tokenizers`` that can be streamed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from operator import index
from typing import TYPE_CHECKING, Any

from core.errors import TokenizerError
from core.text.backend import failure, is_failure, parts

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_IDS = 2**32  # ids are unsigned 32-bit integers in the backend; others overflow there
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Kind(Enum):
    """How text grows as tokens arrive."""

    BYTES = "every token is bytes, and the text is their UTF-8"
    PIECES = "every token is text of its own, but for runs of byte tokens and the first token"
    WHOLE = "later tokens can change earlier text: nothing is certain before the end"


class Pieces:
    """The text of single tokens, each computed once."""

    def __init__(self, backend: Backend, special_ids: frozenset[int]) -> None:
        self._backend = backend
        self._special_ids = special_ids
        self._texts: dict[int, str] = {}
        self._bytes: dict[int, bytes] = {}
        decoders = parts(backend.decoder)
        self._has_bytes = any(decoder["type"] == "ByteFallback" for decoder in decoders)
        self.kind = _kind(decoders)
        self._anchor: tuple[int, ...] = ()
        if self.kind is Kind.PIECES:
            anchor = self._find_anchor()
            if anchor is None:
                self.kind = Kind.WHOLE
            else:
                self._anchor = (anchor,)
        self._anchor_length = len(self.decode(self._anchor))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of all ``ids`` together, special tokens as their literals; time is linear in their number."""
        # Some decoders of `tokenizers` panic on an empty list.
        try:
            text: str = self._backend.decode(list(ids), skip_special_tokens=False) if ids else ""
        except BaseException as error:
            if not is_failure(error):
                raise
            raise failure(f"{len(ids):,} ids", error) from error
        return text

    def token(self, token_id: int) -> str:
        """The token's form in the vocabulary.

        Raises:
            TokenizerError: no token has this id.
        """
        self._check(token_id)
        token: str | None = self._backend.id_to_token(token_id)
        if token is None:
            raise self._no_token(token_id)
        return token

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < _IDS:
            raise self._no_token(token_id)

    def _no_token(self, token_id: int) -> TokenizerError:
        return TokenizerError(f"no token has the id {token_id}", expected=f"0 to {self._backend.get_vocab_size() - 1}")

    def with_text(self, ids: Iterable[int]) -> list[int]:
        """``ids`` as a list of plain integers, without those that have no token.

        A model can choose such an id: its logits may have more rows than the tokenizer has tokens. As in transformers,
        it has no text.

        Raises:
            TokenizerError: a number that cannot be an id: below 0, or 2³² and above.
        """
        plain = [index(token_id) for token_id in ids]
        for token_id in plain:
            self._check(token_id)
        return [token_id for token_id in plain if self._backend.id_to_token(token_id) is not None]

    def is_skipped(self, token_id: int) -> bool:
        """Whether the token has no text: a special one, or an id without a token.

        Raises:
            TokenizerError: as `with_text`.
        """
        self._check(token_id)
        return token_id in self._special_ids or self._backend.id_to_token(token_id) is None

    def is_byte(self, token_id: int) -> bool:
        """Whether the token is one byte of a character (``<0xE2>``), to be joined with its neighbours."""
        return self._has_bytes and _BYTE.fullmatch(self.token(token_id)) is not None

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes; for ``Kind.BYTES`` only."""
        data = self._bytes.get(token_id)
        if data is None:
            token = self.token(token_id)
            # A token with a character outside the byte alphabet (an added token) stands for its own UTF-8.
            known = all(character in _BYTE_OF for character in token)
            data = bytes(_BYTE_OF[character] for character in token) if known else token.encode()
            self._bytes[token_id] = data
        return data

    def text_of(self, token_id: int) -> str:
        """The text that the token adds, unless it is the first; for ``Kind.PIECES`` and tokens that are not bytes."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self.text_after_anchor([token_id])
        return text

    def text_after_anchor(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` add after a token that is not a byte.

        They are decoded after an anchor, a plain letter, so that a decoder's rule for the first token applies to the
        anchor.
        """
        return self.decode([*self._anchor, *ids])[self._anchor_length :]

    def _find_anchor(self) -> int | None:
        for token_id in self._anchor_candidates():
            alone, twice = self.decode([token_id]), self.decode([token_id, token_id])
            if alone.isalpha() and twice.startswith(alone) and len(twice) > len(alone):
                return token_id
        return None

    def _anchor_candidates(self) -> Iterator[int]:
        for letter in "aeionst":
            token_id = self._backend.token_to_id(letter)
            if token_id is not None:
                yield token_id
        yield from range(self._backend.get_vocab_size())


def _kind(decoders: list[dict[str, Any]]) -> Kind:
    types = [decoder["type"] for decoder in decoders]
    if "ByteLevel" in types:
        return Kind.BYTES if set(types) <= {"ByteLevel", "Fuse"} and types.count("ByteLevel") == 1 else Kind.WHOLE
    fused = False
    for decoder in decoders:
        name = decoder["type"]
        # After Fuse, a decoder gets the whole text: only one that changes nothing but the start can be streamed.
        known = {"Strip", "Fuse"} if fused else {"Strip", "Fuse", "Replace", "ByteFallback", "Metaspace"}
        if name not in known or (fused and name == "Strip" and decoder["stop"]):
            return Kind.WHOLE
        fused = fused or name == "Fuse"
    return Kind.PIECES


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable characters for bytes: printable Latin-1 stays as it is, the others are U+0100 and on, in
    order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
