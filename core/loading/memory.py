"""Checks whether a planned model fits the device's memory, before anything is read. Messages have figures and a way
out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from core.config import ModelConfig
from core.device import describe, memory_limits
from core.errors import InsufficientMemoryError
from core.weights import Plan

_CONTEXT = 4096  # tokens of cache counted with the weights, unless the model's context is shorter


class MemoryWarning(UserWarning):
    """A model takes more memory than the device recommends."""


@dataclass(frozen=True)
class MemoryFit:
    """How a plan compares with the device's memory.

    Attributes:
        tokens: length of the sequence whose cache is counted.
        needed: bytes of the weights and of that cache.
        recommended, available: bytes that the device recommends and has; None if unknown.
    """

    tokens: int
    needed: int
    recommended: int | None
    available: int | None

    @property
    def verdict(self) -> Literal["fits", "tight", "too large"]:
        """``tight`` loads with a warning, ``too large`` is refused."""
        if self.available is not None and self.needed > self.available:
            return "too large"
        return "tight" if self.recommended is not None and self.needed > self.recommended else "fits"


def memory_fit(plan: Plan, config: ModelConfig) -> MemoryFit:
    """Whether a planned model fits the default device."""
    tokens = min(_CONTEXT, stated_context(config) or _CONTEXT)
    return MemoryFit(tokens, plan.bytes + plan.kv_bytes(tokens), *memory_limits())


def stated_context(config: ModelConfig) -> int | None:
    """Positions that a model is made for; None if its config does not state them."""
    context = getattr(config, "max_position_embeddings", None)
    return context if isinstance(context, int) and context > 0 else None


def check_memory(plan: Plan, config: ModelConfig) -> None:
    """Warns of a tight fit.

    Raises:
        InsufficientMemoryError: the model is larger than the memory.
    """
    fit = memory_fit(plan, config)
    figures = f"{_gib(plan.bytes)} of weights and {_gib(fit.needed - plan.bytes)} of cache for {fit.tokens} tokens"
    smaller = f"A 4-bit conversion takes about {_gib(plan.parameters * 9 // 16)}."
    if fit.verdict == "too large":
        raise InsufficientMemoryError(
            f"the model needs {figures}",
            where=plan.source,
            expected=f"at most {_gib(fit.available or 0)} on {describe()}",
            hint=f"{smaller} check_memory=False (--no-memory-check) tries anyway.",
        )
    if fit.verdict == "tight":
        warnings.warn(
            f"{plan.source} needs {figures}; {describe()} recommends at most {_gib(fit.recommended or 0)}. {smaller}",
            MemoryWarning,
            stacklevel=4,
        )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
