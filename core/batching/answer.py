"""What becomes of a request's ids: text, the reason to stop, the result. Knows no arrays and no other request."""

from __future__ import annotations

import time

from core.batching.options import Wanted
from core.generation import GenerationChunk, GenerationResult, GenerationStats


class Answer:
    """The answer to one request, id by id.

    Args:
        wanted: what was asked for.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._detokenizer = None if wanted.tokenizer is None else wanted.tokenizer.detokenizer(wanted.prompt_ids)
        self._pieces: list[str] = []
        self._started = time.perf_counter()
        self._first = 0.0
        self.token_ids: list[int] = []
        self.stats = GenerationStats(prompt_tokens=len(wanted.prompt_ids))

    def add(self, token_id: int) -> tuple[GenerationChunk, str | None]:
        """Takes the next id; returns its chunk, and why the answer ends with it, if it does."""
        now = time.perf_counter()
        self.token_ids.append(token_id)
        stats = self.stats
        stats.generated_tokens += 1
        if stats.generated_tokens == 1:
            stats.prompt_seconds, self._first = now - self._started, now
        stats.decode_seconds = now - self._first
        text = ""
        if token_id in self._wanted.eos:
            return GenerationChunk(text, token_id), "stop"
        if self._detokenizer is not None:
            text = self._detokenizer.add(token_id)
            self._pieces.append(text)
        ended = stats.generated_tokens >= self._wanted.max_tokens
        return GenerationChunk(text, token_id), "length" if ended else None

    def finish(self, reason: str) -> GenerationChunk:
        """The last chunk, with the result."""
        rest = self._detokenizer.finish() if self._detokenizer is not None else ""
        self._pieces.append(rest)
        wanted = self._wanted
        result = GenerationResult(
            "".join(self._pieces),
            self.token_ids,
            wanted.prompt_ids,
            reason,  # type: ignore[arg-type]
            wanted.sampling,
            self.stats,
        )
        return GenerationChunk(rest, None, result)
