"""What becomes of a request's ids: text, the reason to stop, the result. Knows no arrays and no other request."""

from __future__ import annotations

import time

from core.batching.options import Wanted
from core.generation import FinishReason, GenerationChunk, GenerationResult, GenerationStats, Token
from core.text.stops import StopStrings
from core.text.tool_calls import ToolCall, parse_tool_calls


class Answer:
    """The answer to one request, token by token.

    Args:
        wanted: what was asked for.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        before = wanted.prompt_ids if wanted.continues else []
        self._detokenizer = None if wanted.tokenizer is None else wanted.tokenizer.detokenizer(before)
        self._stops = StopStrings(wanted.stop)
        self._stopped_by: str | int | None = None
        self._pieces: list[str] = []
        self._tokens: list[Token] = []
        self._started = time.perf_counter()
        self._first = 0.0
        self.stats = GenerationStats(prompt_tokens=len(wanted.prompt_ids))

    @property
    def token_ids(self) -> list[int]:
        """The ids so far."""
        return [token.id for token in self._tokens]

    def add(self, token: Token) -> tuple[GenerationChunk, FinishReason | None]:
        """Takes the next token; returns its chunk, and why the answer ends with it, if it does."""
        now = time.perf_counter()
        self._tokens.append(token)
        stats = self.stats
        stats.generated_tokens += 1
        if stats.generated_tokens == 1:
            stats.prompt_seconds, self._first = now - self._started, now
        stats.decode_seconds = now - self._first
        text = ""
        reason: FinishReason | None = None
        if token.id in self._wanted.eos:
            self._stopped_by, reason = token.id, "stop"
        elif self._detokenizer is not None:
            text = self._stops.add(self._detokenizer.add(token.id))
            self._pieces.append(text)
        if self._stops.found is not None:
            reason = "stop"
        elif reason is None and stats.generated_tokens >= self._wanted.max_tokens:
            reason = self._wanted.limit
        return GenerationChunk(text, token.id, None, token.logprob, token.top), reason

    def finish(self, reason: FinishReason) -> GenerationChunk:
        """The last chunk, with the result."""
        rest = ""
        if self._detokenizer is not None:
            rest = self._stops.add(self._detokenizer.finish()) + self._stops.finish()
        self._pieces.append(rest)
        wanted, tokens, text = self._wanted, self._tokens, "".join(self._pieces)
        calls: tuple[ToolCall, ...] = ()
        if wanted.calls and wanted.tokenizer is not None:
            called = parse_tool_calls(self.token_ids, wanted.tokenizer)
            if called.calls:  # the text beside them: what is written of a call is no prose
                text, calls = called.text, called.calls
        if self._stops.found is not None:
            reason, self._stopped_by = "stop", self._stops.found
        result = GenerationResult(
            text,
            self.token_ids,
            wanted.prompt_ids,
            reason,
            wanted.sampling,
            self.stats,
            self._stopped_by,
            None if wanted.logprobs is None else [token.logprob or 0.0 for token in tokens],
            None if wanted.logprobs is None else [token.top for token in tokens],
            calls,
        )
        return GenerationChunk(rest, None, result)
