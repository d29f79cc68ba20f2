"""The single tokens of Mistral's own tokenizer files: their bytes, and a unique form of each.

The attributes of mistral-common's tokenizers are read; mistral-common is not imported.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces(Protocol):
    """One vocabulary.

    Attributes:
        leading_space: the first token of a text adds a space that the text does not have.
    """

    leading_space: bool

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; not for control tokens."""

    def form_of(self, token_id: int) -> str:
        """A token's name, which is unique."""


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
        # Bytes that form no character are escaped.
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
