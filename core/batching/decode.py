"""One decode step on the device. A faster step for some rows can be put in here, and only here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from core.batching.prefill import Chunk
from core.kernels import inference
from core.nn import Cache
from core.nn.groups import CacheGroups


def decode_logits(model: Any, caches: Sequence[Cache], tokens: mx.array, chunk: Chunk | None = None) -> mx.array:
    """Writes one token of each row into its cache, and returns the logits of the next.

    Args:
        model: a ``core.nn.Decoder``.
        caches: of the rows, in the order of ``tokens``; each row has its own position.
        tokens: integers ``[rows]``.
        chunk: prompt tokens to read in the same pass, so that both share the cost of reading the weights.

    Returns:
        ``[rows, vocab]``, not yet computed.
    """
    with inference():
        if chunk is not None:
            groups = CacheGroups(
                [*caches, chunk.reading.cache],
                [1] * len(caches) + [chunk.tokens.shape[1]],
                [None] * len(caches) + [chunk.counts],
            )
            both = mx.concatenate([tokens, chunk.tokens.flatten().astype(tokens.dtype)])
            hidden = model.hidden_states(both[:, None], groups)[: tokens.size]
        else:
            hidden = model.hidden_states(tokens[:, None], caches[0] if len(caches) == 1 else CacheGroups(caches))
        logits: mx.array = model.head(hidden)[:, -1]
    return logits
