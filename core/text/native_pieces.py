"""What single tokens of Mistral's own tokenizer files stand for: bytes, and a form by which to tell them apart.

Knows mistral-common's tokenizers by their attributes; imports nothing of it.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces(Protocol):
    """One vocabulary.

    Attributes:
        leading_space: a text's first token has a space before it that is not the text's.
    """

    leading_space: bool

    def bytes_of(self, token_id: int) -> bytes:
        """What a token that is no control token adds to a text."""

    def form_of(self, token_id: int) -> str:
        """A token's name, of which no two are equal."""


class TekkenPieces:
    """``tekken.json``: every token is bytes."""

    leading_space = False

    def __init__(self, inner: Any) -> None:
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

        self._inner = inner
        self._keep = SpecialTokenPolicy["KEEP"]

    def bytes_of(self, token_id: int) -> bytes:
        data: bytes = self._inner.id_to_byte_piece(token_id, self._keep)
        return data

    def form_of(self, token_id: int) -> str:
        # Bytes that make no character are escaped.
        return self.bytes_of(token_id).decode("utf-8", "surrogateescape")


class SentencePieces:
    """``tokenizer.model.v*``: a piece is text with ``▁`` for spaces, or ``<0x..>`` for one byte."""

    leading_space = True

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def bytes_of(self, token_id: int) -> bytes:
        piece = self.form_of(token_id)
        match = _BYTE.fullmatch(piece)
        return bytes([int(match[1], 16)]) if match else piece.replace("▁", " ").encode()

    def form_of(self, token_id: int) -> str:
        piece: str = self._inner.id_to_piece(token_id)
        return piece
