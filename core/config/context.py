"""``context_length``: for how many positions a model was made, from its config."""

from __future__ import annotations

from typing import Any


def context_length(config: Any) -> int | None:
    """Tokens of the longest sequence; None where the config names none.

    This is ``max_position_embeddings``, times the factor of a rotary scaling that extends it. ``linear`` and
    ``dynamic`` extend that key itself. ``yarn`` extends ``original_max_position_embeddings``, unless
    ``max_position_embeddings`` is already larger. ``llama3`` and ``longrope`` state the extended length. vLLM reads
    them in the same way.
    """
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int):
        return None
    rope = getattr(config, "rope_parameters", None)
    kind, factor = getattr(rope, "rope_type", None), getattr(rope, "factor", None) or 1.0
    if kind in ("linear", "dynamic"):
        return max(length, int(length * factor))
    if kind == "yarn":
        return max(length, int((getattr(rope, "original_max_position_embeddings", None) or length) * factor))
    return length
