"""``Row``: a request as the engine runs it."""

from __future__ import annotations

from dataclasses import dataclass

from core.batching.answer import TimedAnswer
from core.batching.request import BatchRequest
from core.nn import Cache


@dataclass(eq=False, slots=True)
class Row:
    """One request that waits, whose prompt is read, or that decodes.

    Attributes:
        request: its public handle.
        answer: turns its ids into its stream and its result.
        nbytes: reserved for its cache.
        logprobs: how many of the most likely tokens to report; None reports none.
        started: its prompt is being read, or has been: an interrupt of its step fails it.
        eos: ids that end its answer.
        submitted: number of its steps that the device has been given; each makes one token.
        index: its place among the ids of the last step.
        crowd: it was waiting at a time when no row decoded.
        sought: the prefix cache has been searched for it.
        found: the cache of an earlier prompt with the same beginning, which it continues.
    """

    request: BatchRequest
    answer: TimedAnswer
    nbytes: int
    logprobs: int | None = None
    eos: frozenset[int] = frozenset()
    started: bool = False
    submitted: int = 0
    index: int = 0
    crowd: bool = False
    sought: bool = False
    found: Cache | None = None

    @property
    def total(self) -> int:
        """Tokens that its cache may grow to."""
        return len(self.request.prompt_ids) + self.request.max_tokens

    @property
    def to_read(self) -> list[int]:
        """The prompt's ids to process before the row decodes; the prompt's last id is the input of its first decode
        step."""
        return self.request.prompt_ids[0 if self.found is None else self.found.length : -1]
