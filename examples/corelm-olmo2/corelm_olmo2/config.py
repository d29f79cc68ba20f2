"""OLMo 2's ``config.json``. Defaults are those of transformers' ``Olmo2Config``; sizes have none here."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from core.config import RotaryConfig


class Olmo2Config(RotaryConfig):
    """Sizes and settings of an OLMo 2 model.

    Attributes:
        num_key_value_heads: absent or ``null`` means as many as there are query heads.
        head_dim: features of a head; absent or ``null`` means ``hidden_size / num_attention_heads``.
        attention_bias: the four projections of attention have biases.
    """

    causal_architectures: ClassVar[frozenset[str]] = frozenset({"Olmo2ForCausalLM"})

    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: PositiveInt = 2_048
    rms_norm_eps: PositiveFloat = 1e-5
    attention_bias: bool = False

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            raw = {"num_key_value_heads": None, **raw}
        return cls.derive_heads(raw)
