"""What generation returns: ids, text, why it ended, what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.generation.sampling import Sampling

FinishReason = Literal["stop", "length"]
"""``stop``: an end-of-sequence token; ``length``: ``max_tokens`` were generated."""


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
        sampling: the settings used, with the seed.
        stats: counts and times.
    """

    text: str
    token_ids: list[int]
    prompt_ids: list[int]
    finish_reason: FinishReason
    sampling: Sampling
    stats: GenerationStats


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """A piece of a running generation; the last one carries ``result``, which holds everything.

    Attributes:
        text: newly finished text; may be empty.
        token_id: the token that finished it; None in the last chunk.
        result: the whole, in the last chunk.
    """

    text: str
    token_id: int | None = None
    result: GenerationResult | None = None
