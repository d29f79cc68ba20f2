"""``Detokenizer``: decodes a stream of token ids to text, as early as the text is final.

Each id is decoded a constant number of times, so a stream takes linear time.

When text is final depends on the decoder. With byte-level vocabularies, a character is final with its last byte. With
byte fallback (``<0xE2>``), a whole run of byte tokens decodes as characters if all of it is valid UTF-8, and otherwise
as one U+FFFD for each byte (this is the rule of `tokenizers`), so a run is held until a token of another kind ends it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from core.text.pieces import Kind, Pieces


class Detokenizer:
    """Streams the text of ids added one by one.

    All pieces that `add` and `finish` return, joined, are exactly ``Tokenizer.decode(ids)``: special tokens are
    skipped, and the leading space of SentencePiece-style vocabularies is dropped.

    Args:
        pieces: the vocabulary (use `Tokenizer.detokenizer`).
        prompt_ids: the preceding ids. The text then continues theirs (a leading space is kept), and a character whose
            first bytes end the prompt belongs to the text.
    """

    def __init__(self, pieces: Pieces, prompt_ids: Iterable[int] = ()) -> None:
        self._pieces = pieces
        self._held: list[int] = []  # ids whose text is not final yet
        self._begun = False  # whether text was returned; later tokens need no rules for the first token
        self._emitted = 0  # characters of the held ids' text that belong to the prompt
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._start_after([i for i in pieces.with_text(prompt_ids) if not pieces.is_skipped(i)])

    def add(self, token_id: int) -> str:
        """Adds the next id; returns the text that has become final, which may be empty.

        An id without a token has no text: a model's logits may have more rows than the tokenizer has tokens.

        Raises:
            TokenizerError: the id is below 0, or 2³² and above.
        """
        pieces = self._pieces
        if pieces.is_skipped(token_id):
            return ""
        if pieces.kind is Kind.BYTES:
            return self._utf8.decode(pieces.bytes_of(token_id))
        if pieces.kind is Kind.PIECES and self._begun and not self._held and not pieces.is_byte(token_id):
            return pieces.text_of(token_id)
        self._held.append(token_id)
        if pieces.kind is Kind.WHOLE or pieces.is_byte(token_id):
            return ""
        return self._release()

    def finish(self) -> str:
        """The rest of the text; bytes that form no character become U+FFFD. A second call returns nothing."""
        if self._pieces.kind is Kind.BYTES:
            return self._utf8.decode(b"", final=True)
        return self._release()

    def _release(self) -> str:
        """The held ids' text. They stay held while it is empty, because the rules for the text's start still apply."""
        if not self._held:
            return ""
        text = self._pieces.text_after_anchor(self._held) if self._begun else self._pieces.decode(self._held)
        text = text[self._emitted :]
        if text:
            self._begun, self._emitted = True, 0
            self._held.clear()
        return text

    def _start_after(self, prompt: list[int]) -> None:
        pieces = self._pieces
        if pieces.kind is Kind.BYTES:
            # An unfinished character has at most three bytes, and its first byte completes the text before it.
            tail = b""
            while prompt and len(tail) < 3:
                tail = pieces.bytes_of(prompt.pop()) + tail
            self._utf8.decode(tail)
        elif pieces.kind is Kind.WHOLE:
            self._held, self._emitted = prompt, len(pieces.decode(prompt))
        else:
            start = len(prompt)
            while start and pieces.is_byte(prompt[start - 1]):
                start -= 1
            self._begun = bool(pieces.decode(prompt[:start]))
            self._held = prompt[start:] if self._begun else prompt
