"""Which tokens break a text into passages: those whose text holds a line end, a colon, a quote or an asterisk.

llama.cpp's defaults for DRY, which then penalises no repetition across the marks that chats and lists repeat anyway.
Knows tokenizers; knows nothing of DRY.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.errors import TokenizerError

if TYPE_CHECKING:
    from core.text.native import NativeTokenizer
    from core.text.tokenizer import Tokenizer

BREAKERS = ("\n", ":", '"', "*")


def breaker_ids(tokenizer: Tokenizer | NativeTokenizer) -> tuple[int, ...]:
    """Ids of the tokens that hold one of ``BREAKERS``; reads the whole vocabulary."""
    return tuple(i for i in range(tokenizer.vocab_size) if any(mark in _text(tokenizer, i) for mark in BREAKERS))


def _text(tokenizer: Tokenizer | NativeTokenizer, token_id: int) -> str:
    try:
        return tokenizer.decode([token_id])
    except TokenizerError:  # a hole in the vocabulary
        return ""
