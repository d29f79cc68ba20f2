"""The settings of a benchmark: lengths and counts, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import UsageError

DEFAULT_PROMPTS = (32, 512, 2048, 8192)


@dataclass(frozen=True, slots=True)
class Settings:
    """The lengths and the number of runs.

    Attributes:
        prompt_tokens: lengths of the prompts, ascending.
        generate: new tokens of a run; the first of them ends the prefill, the others are the decode.
        iterations: counted runs of each length.
        chosen: the user gave the lengths; else they are core's default.
    """

    prompt_tokens: tuple[int, ...]
    generate: int
    iterations: int
    chosen: bool

    @classmethod
    def checked(cls, prompt_tokens: Sequence[int] | None, generate: int, iterations: int) -> Settings:
        """
        Args:
            prompt_tokens: None takes ``DEFAULT_PROMPTS``.

        Raises:
            UsageError: a value is out of range.
        """
        prompts = DEFAULT_PROMPTS if prompt_tokens is None else tuple(sorted(set(prompt_tokens)))
        if not prompts:
            raise UsageError("prompt_tokens names no length", expected="for instance 32 or 32,2048")
        for name, value, least in (
            ("prompt_tokens", prompts[0], 1),
            ("generate", generate, 2),
            ("iterations", iterations, 1),
        ):
            if value < least:
                raise UsageError(f"{name} is out of range", expected=f"{least} or more", found=value)
        return cls(prompts, generate, iterations, prompt_tokens is not None)

    def fitting(self, limit: int | None) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The lengths to run on a model with a context of ``limit`` tokens (None: unknown), and remarks.

        Default lengths that do not fit are left out. Lengths that the user gave are run: the speed is valid, the text
        is not.
        """
        if limit is None:
            return self.prompt_tokens, ()
        long = tuple(length for length in self.prompt_tokens if length + self.generate > limit)
        if not long:
            return self.prompt_tokens, ()
        named = ", ".join(f"{length:,}" for length in long)
        if self.chosen:
            return self.prompt_tokens, (f"longer than the {limit:,} tokens that the model was made for: {named}",)
        rest = self.prompt_tokens[: len(self.prompt_tokens) - len(long)]
        return rest or (max(1, limit - self.generate),), (
            f"left out, as the model was made for {limit:,} tokens: {named}",
        )


def prompt(length: int, vocab_size: int) -> list[int]:
    """Token ids spread over the vocabulary, the same for all sides."""
    return [(place * 7919 + 13) % vocab_size for place in range(length)]
