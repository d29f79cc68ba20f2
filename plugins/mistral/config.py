"""Mistral's ``config.json``. Defaults are those of transformers' ``MistralConfig``; sizes have none here.

A file without its sizes is damaged: filling in a 7B model's would only turn one clear error into many wrong shapes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from core.config import RotaryConfig


class MistralConfig(RotaryConfig):
    """Sizes and settings of a Mistral model.

    Attributes:
        sliding_window: keys that a query sees, itself included; an absent key means 4096, ``null`` means all.
        head_dim: features of a head; absent or ``null`` means ``hidden_size / num_attention_heads``.
    """

    causal_architectures: ClassVar[frozenset[str]] = frozenset({"MistralForCausalLM"})

    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt = 8
    head_dim: PositiveInt
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: PositiveInt = 131_072
    rms_norm_eps: PositiveFloat = 1e-6
    sliding_window: PositiveInt | None = 4_096

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, raw: Any) -> Any:
        return cls.derive_heads(raw)
