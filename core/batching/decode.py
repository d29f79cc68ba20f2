"""The logits of one decode step: the one place where a faster step for some rows can be put in."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from core.kernels import inference
from core.nn import Cache
from core.nn.groups import CacheGroups


def decode_logits(model: Any, cache: Cache | CacheGroups, tokens: mx.array) -> mx.array:
    """One token of each row into the cache, and the logits of the next.

    Args:
        model: a ``core.nn.Decoder``.
        cache: the rows' caches; each row stands at its own position.
        tokens: integers ``[rows]``.

    Returns:
        ``[rows, vocab]``, not yet computed.
    """
    with inference():
        return model.head(model.hidden_states(tokens[:, None], cache))[:, -1]
