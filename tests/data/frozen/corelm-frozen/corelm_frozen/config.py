"""Frozen's ``config.json``.

A field has a default only where the reference implementation has one. A file without its sizes is damaged: filling them
in would only turn one clear error into many wrong shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from core.config import RotaryConfig


class FrozenConfig(RotaryConfig):
    """Sizes and settings of one Frozen model.

    Attributes:
        sliding_window: keys that a query sees, itself included; an absent key and ``null`` both mean all.
        head_dim: features of a head; absent or ``null`` means ``hidden_size / num_attention_heads``.
        num_local_experts: experts of each block, also spelled ``num_experts``.
        num_experts_per_tok: how many of them each token uses.
    """

    # Settings of the training loss and of transformers' outputs.
    harmless: ClassVar[frozenset[str]] = frozenset(
        {"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"}
    )

    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: PositiveInt
    rms_norm_eps: PositiveFloat
    sliding_window: PositiveInt | None = None
    num_local_experts: PositiveInt
    num_experts_per_tok: PositiveInt

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and "num_experts" in raw:
            raw = {"num_local_experts": raw["num_experts"], **raw}
        return cls.derive_heads(raw)

    @classmethod
    def read_keys(cls) -> frozenset[str]:
        return super().read_keys() | {"num_experts"}

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.num_experts_per_tok > self.num_local_experts:
            experts = f"num_local_experts ({self.num_local_experts})"
            raise ValueError(f"num_experts_per_tok is {self.num_experts_per_tok}, at most {experts}")
        return self
