"""What becomes of generated tokens: text, the reason to stop, the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from core.generation import FinishReason, GenerationChunk, GenerationResult, Token
from core.text.stops import StopStrings
from core.text.tool_calls import parse_tool_calls

if TYPE_CHECKING:
    from core.text import NativeTokenizer, Tokenizer


class Answer:
    """The answer to one prompt, token by token.

    Args:
        empty: the result so far: prompt, settings, and stats, which whoever generates fills in.
        tokenizer: of the text; None where there are only ids.
        before: ids whose text the answer goes on from.
        eos: ids that end the answer.
        stop: strings that end it.
        logprobs: tokens come with their log-probabilities, for the result.
        calls: tools were offered: the result has the calls that the tokens make.
    """

    def __init__(
        self,
        empty: GenerationResult,
        tokenizer: Tokenizer | NativeTokenizer | None,
        *,
        before: Sequence[int],
        eos: Collection[int],
        stop: str | Sequence[str] = (),
        logprobs: bool = False,
        calls: bool = False,
    ) -> None:
        self._empty, self._tokenizer, self._eos = empty, tokenizer, eos
        self._logprobs, self._calls = logprobs, calls
        self._stops = StopStrings(stop)
        self._detokenizer = None if tokenizer is None else tokenizer.detokenizer(before)
        self._ended_by: int | None = None
        self._tokens: list[Token] = []
        self._pieces: list[str] = []

    @property
    def token_ids(self) -> list[int]:
        """The ids so far."""
        return [token.id for token in self._tokens]

    @property
    def stopped_by(self) -> str | int | None:
        """The stop string that is complete, else the end-of-sequence token that came, else None."""
        return self._ended_by if self._stops.found is None else self._stops.found

    def add(self, token: Token) -> GenerationChunk:
        """Takes the next token; returns its chunk."""
        self._tokens.append(token)
        text = ""
        if token.id in self._eos:
            self._ended_by = token.id
        elif self._detokenizer is not None:
            text = self._stops.add(self._detokenizer.add(token.id))
            self._pieces.append(text)
        return GenerationChunk(text, token.id, None, token.logprob, token.top)

    def finish(self, reason: FinishReason) -> GenerationChunk:
        """The last chunk, with the result. A stop string that is there, perhaps only now, goes before any reason."""
        rest = ""
        if self._detokenizer is not None:
            rest = self._stops.add(self._detokenizer.finish()) + self._stops.finish()
        self._pieces.append(rest)
        whole = dataclasses.replace(
            self._empty,
            text="".join(self._pieces),
            token_ids=self.token_ids,
            finish_reason=reason if self._stops.found is None else "stop",
            stopped_by=self.stopped_by,
            logprobs=[token.logprob or 0.0 for token in self._tokens] if self._logprobs else None,
            top_logprobs=[token.top for token in self._tokens] if self._logprobs else None,
        )
        if self._calls and self._tokenizer is not None:
            called = parse_tool_calls(whole.token_ids, self._tokenizer)
            if called.calls:  # the text beside them: what is written of a call is no prose
                whole = dataclasses.replace(whole, text=called.text, tool_calls=called.calls)
        return GenerationChunk(rest, None, whole)
