"""Finds the tokens that break a text into passages: those with a line end, a colon, a quote or an asterisk in their
text.

These are llama.cpp's defaults for DRY. DRY then penalises no repetition across such marks, which chats and lists repeat
anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.errors import TokenizerError

if TYPE_CHECKING:
    from core.text.native import NativeTokenizer
    from core.text.tokenizer import Tokenizer

BREAKERS = ("\n", ":", '"', "*")


def breaker_ids(tokenizer: Tokenizer | NativeTokenizer) -> tuple[int, ...]:
    """Ids of the tokens that contain one of ``BREAKERS``; reads the whole vocabulary."""
    return tuple(i for i in range(tokenizer.vocab_size) if any(mark in _text(tokenizer, i) for mark in BREAKERS))


def _text(tokenizer: Tokenizer | NativeTokenizer, token_id: int) -> str:
    try:
        return tokenizer.decode([token_id])
    except TokenizerError:  # a hole in the vocabulary
        return ""
