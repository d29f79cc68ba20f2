"""A request as its owner sees it, and what a step of the batch reports of it. Knows no arrays and no schedule."""

from __future__ import annotations

from dataclasses import dataclass

from core.generation import GenerationChunk, GenerationResult, Sampling


class BatchRequest:
    """One generation in a batch; ``Batch.submit`` makes it.

    Attributes:
        id: counts the requests of a batch, from 0.
        prompt_ids: what is processed.
        max_tokens: new tokens at most.
        sampling: the settings, with the seed.
        cancelled: its owner wants no more of it.
        result: the whole answer, once it is there; of a cancelled request, what there was.
        error: why there is none.
    """

    def __init__(self, number: int, prompt_ids: list[int], max_tokens: int, sampling: Sampling) -> None:
        self.id = number
        self.prompt_ids = prompt_ids
        self.max_tokens = max_tokens
        self.sampling = sampling
        self.result: GenerationResult | None = None
        self.error: Exception | None = None
        self.cancelled = False

    def __repr__(self) -> str:
        state = "failed" if self.error else "finished" if self.result else "open"
        return f"<BatchRequest {self.id}, {len(self.prompt_ids)} prompt tokens, {state}>"

    @property
    def done(self) -> bool:
        """It has its result or its error."""
        return self.result is not None or self.error is not None

    def cancel(self) -> None:
        """Ends it; the next step reports what there is, with finish reason ``cancelled``. Any thread may call this."""
        self.cancelled = True


@dataclass(frozen=True, slots=True)
class BatchEvent:
    """What a step did for one request: a chunk of its stream, or its error.

    Attributes:
        request: whose.
        chunk: as of ``LanguageModel.stream``; the last one carries the result.
        error: the request has ended by it.
    """

    request: BatchRequest
    chunk: GenerationChunk | None = None
    error: Exception | None = None

    @property
    def result(self) -> GenerationResult | None:
        """The whole answer, in a request's last event."""
        return None if self.chunk is None else self.chunk.result
