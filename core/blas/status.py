"""What is known of the library that MLX's products run through, as data and in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """The library that multiplies matrices for MLX on this CPU.

    Attributes:
        used: another library than MLX's own.
        name: what it is called; path: its file; both null for MLX's own.
        threads: how many it computes with; null where it does not say.
        reason: why MLX's own is used; null where another is.
        hint: what to do for a faster one; null where there is nothing to do.
    """

    used: bool
    name: str | None = None
    path: str | None = None
    threads: int | None = None
    reason: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        if self.used:
            count = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
            return f"{self.name}{count}"
        return f"MLX's own, on one thread and slow: {self.reason}" + (f". {self.hint}" if self.hint else "")


def own(reason: str, hint: str | None = None) -> Status:
    """The status where MLX's own library stays in use."""
    return Status(False, reason=reason, hint=hint)
