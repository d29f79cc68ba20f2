"""What generation returns: ids, text, why it ended, what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from core.generation.sampling import Sampling

if TYPE_CHECKING:
    from core.text.tool_calls import ToolCall

FinishReason = Literal["stop", "length", "context", "cancelled"]
"""``stop``: an end-of-sequence token or a stop string; ``length``: ``max_tokens`` were generated; ``context``: the
model's positions are used up; ``cancelled``: whoever asked for it wants no more (``core.Batch``)."""

TopLogprobs = tuple[tuple[int, float], ...]
"""Ids and log-probabilities of the likeliest tokens, falling."""


class Token(NamedTuple):
    """One generated token.

    Attributes:
        id: in the vocabulary.
        logprob: its log-probability in the model's own distribution, before any setting; None if not asked for.
        top: the likeliest tokens' ids and log-probabilities, falling; empty if not asked for.
        finish_reason: why the generation ends with it; None where it goes on.
    """

    id: int
    logprob: float | None = None
    top: TopLogprobs = ()
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class GenerationStats:
    """Counts and times of one generation.

    Attributes:
        prompt_tokens: tokens processed before the first new one.
        prompt_seconds: from the start until the first new token was there.
        generated_tokens: new tokens.
        decode_seconds: from the first new token to the last.
        peak_memory: bytes, the most that MLX held during the generation.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    generated_tokens: int = 0
    decode_seconds: float = 0.0
    peak_memory: int = 0

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tps(self) -> float:
        """New tokens a second, not counting the first, which the prompt's processing yields."""
        return (self.generated_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished generation.

    Attributes:
        text: the new text, without special tokens.
        token_ids: the new ids; an end-of-sequence token that ended it is the last. A cache passed in now holds what it
            held before, the prompt, and these ids but the last.
        prompt_ids: the ids that were processed.
        finish_reason: why it ended.
        stopped_by: the stop string that ended it, or the id of the end-of-sequence token; else None.
        sampling: the settings used, with the seed.
        stats: counts and times.
        logprobs: of each new id, its log-probability in the model's own distribution, before any setting; None if not
            asked for.
        top_logprobs: for each new id, the likeliest tokens in its place; None if not asked for.
        tool_calls: what the model asks for, where tools were offered; ``text`` is then what it says beside them.
    """

    text: str
    token_ids: list[int]
    prompt_ids: list[int]
    finish_reason: FinishReason
    sampling: Sampling
    stats: GenerationStats
    stopped_by: str | int | None = None
    logprobs: list[float] | None = None
    top_logprobs: list[TopLogprobs] | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """A piece of a running generation; the last one carries ``result``, which holds everything.

    Attributes:
        text: newly finished text; may be empty.
        token_id: the token that finished it; None in the last chunk.
        result: the whole, in the last chunk.
        logprob: of the token, as in ``GenerationResult.logprobs``.
        top_logprobs: the likeliest tokens in its place; empty if not asked for.
    """

    text: str
    token_id: int | None = None
    result: GenerationResult | None = None
    logprob: float | None = None
    top_logprobs: TopLogprobs = ()
