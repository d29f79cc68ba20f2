"""``TimedAnswer``: turns the ids of one request into its stream and its result, and measures the times."""

from __future__ import annotations

import time

from core.batching.options import Wanted
from core.generation import FinishReason, GenerationChunk, GenerationResult, GenerationStats, Token
from core.language_model.answer import Answer


class TimedAnswer:
    """The answer to one request, token by token.

    Args:
        wanted: what was asked for.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._started = time.perf_counter()
        self._first = 0.0
        self.stats = GenerationStats(prompt_tokens=len(wanted.prompt_ids))
        self._answer = Answer(
            GenerationResult("", [], wanted.prompt_ids, "length", wanted.sampling, self.stats),
            wanted.tokenizer,
            before=wanted.prompt_ids if wanted.continues else [],
            eos=wanted.eos,
            stop=wanted.stop,
            logprobs=wanted.logprobs is not None,
            calls=wanted.calls,
        )

    @property
    def token_ids(self) -> list[int]:
        """The ids so far."""
        return self._answer.token_ids

    def add(self, token: Token) -> tuple[GenerationChunk, FinishReason | None]:
        """Adds the next token. Returns its chunk, and the finish reason if the answer ends here."""
        now = time.perf_counter()
        stats = self.stats
        stats.generated_tokens += 1
        if stats.generated_tokens == 1:
            stats.prompt_seconds, self._first = now - self._started, now
        stats.decode_seconds = now - self._first
        chunk = self._answer.add(token)
        if self._answer.stopped_by is not None:
            return chunk, "stop"
        return chunk, self._wanted.limit if stats.generated_tokens >= self._wanted.max_tokens else None

    def finish(self, reason: FinishReason) -> GenerationChunk:
        """Ends the answer; returns the last chunk, which carries the result."""
        return self._answer.finish(reason)
