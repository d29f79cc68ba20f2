"""How a block states what its forward pass consists of, for code that computes the same in another way.

A module with a method ``parts`` promises that its ``__call__`` is the formula of the returned object. The promise holds
for one class: if a subclass overrides ``__call__`` and not ``parts``, it makes none (``stated_parts``).
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.nn as nn


@dataclass(frozen=True, slots=True)
class PreNorm:
    """``y = x + attention(attention_norm(x), step)``, then ``y + feed_forward(feed_forward_norm(y))``."""

    attention_norm: nn.Module
    attention: nn.Module
    feed_forward_norm: nn.Module
    feed_forward: nn.Module


@dataclass(frozen=True, slots=True)
class SparseExperts:
    """The ``experts_per_token`` experts of largest ``router(x)``, weighted by the softmax over these alone."""

    router: nn.Module
    experts: nn.Module
    experts_per_token: int


def stated_parts(module: nn.Module) -> PreNorm | SparseExperts | None:
    """The module's ``parts()``; None where the class that defines its ``__call__`` does not define them."""
    for owner in type(module).__mro__:
        if "__call__" in vars(owner) or "parts" in vars(owner):
            if "__call__" in vars(owner) and "parts" in vars(owner):
                parts = module.parts()
                return parts if isinstance(parts, PreNorm | SparseExperts) else None
            return None
    return None
