"""The public handle of a request, and the events that a step of the batch reports."""

from __future__ import annotations

from dataclasses import dataclass

from core.generation import GenerationChunk, GenerationResult, Sampling


class BatchRequest:
    """One generation in a batch; ``Batch.submit`` makes it.

    Attributes:
        id: the number of the request in its batch, from 0.
        prompt_ids: the processed prompt.
        max_tokens: new tokens at most.
        sampling: the settings, with the seed.
        cancelled: whether ``cancel`` was called.
        result: the whole answer when it is complete; for a cancelled request, the part that was generated.
        error: why there is no result.
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
        """Whether it has its result or its error."""
        return self.result is not None or self.error is not None

    def cancel(self) -> None:
        """Ends the request. The next step reports what was generated, with finish reason ``cancelled``. Any thread may
        call it."""
        self.cancelled = True


@dataclass(frozen=True, slots=True)
class BatchEvent:
    """What a step did for one request: a chunk of its stream, or its error.

    Attributes:
        request: the request.
        chunk: as in ``LanguageModel.stream``; the last one carries the result.
        error: the error that ended the request.
    """

    request: BatchRequest
    chunk: GenerationChunk | None = None
    error: Exception | None = None

    @property
    def result(self) -> GenerationResult | None:
        """The whole answer, in a request's last event."""
        return None if self.chunk is None else self.chunk.result
