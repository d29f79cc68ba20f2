"""Rotary-embedding settings: every published spelling, normalised once into ``RopeParameters``.

Two spellings exist: ``rope_theta`` beside ``rope_scaling`` (transformers 4), and ``rope_parameters`` holding both
(transformers 5). Knows their keys and defaults; the arithmetic is in ``core.nn.rope``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, model_validator

from core.config.base import ModelConfig

_REQUIRED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("original_max_position_embeddings",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
# Types whose arithmetic needs the pre-training context length; transformers fills it from max_position_embeddings.
_NEEDS_ORIGINAL_LENGTH = frozenset({"yarn", "llama3", "longrope"})


class RopeParameters(BaseModel):
    """One rotary embedding, as transformers 5 writes it (``transformers/modeling_rope_utils.py``).

    ``rope_theta`` is the base; lengths are in tokens; ``factor`` and the others are dimensionless. Keys that the chosen
    ``rope_type`` does not use stay ``None``.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    rope_type: Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"] = "default"
    rope_theta: PositiveFloat
    partial_rotary_factor: PositiveFloat = 1.0
    factor: PositiveFloat | None = None
    original_max_position_embeddings: PositiveInt | None = None
    attention_factor: PositiveFloat | None = None
    beta_fast: PositiveFloat | None = None
    beta_slow: PositiveFloat | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: PositiveFloat | None = None
    high_freq_factor: PositiveFloat | None = None
    short_factor: list[float] | None = None
    long_factor: list[float] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [key for key in _REQUIRED.get(self.rope_type, ()) if getattr(self, key) is None]
        if missing:
            raise ValueError(f"rope_type {self.rope_type!r} with {', '.join(missing)}")
        return self


class RotaryConfig(ModelConfig):
    """A config whose attention rotates queries and keys.

    Attributes:
        default_rope_theta: the base where the file names none; each architecture owns its own.
    """

    default_rope_theta: ClassVar[float] = 10_000.0

    max_position_embeddings: PositiveInt
    rope_parameters: RopeParameters

    @model_validator(mode="before")
    @classmethod
    def _normalise_rope(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or isinstance(raw.get("rope_parameters"), RopeParameters):
            return raw
        normalised = dict(raw)
        # transformers' precedence: rope_scaling, where it says anything, replaces rope_parameters.
        parameters = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
        if isinstance(parameters, Mapping):
            parameters = dict(parameters)
            legacy_type = parameters.pop("type", None)
            rope_type = parameters.setdefault("rope_type", legacy_type or "default")
            theta = raw.get("rope_theta")
            parameters.setdefault("rope_theta", cls._field_default("rope_theta") if theta is None else theta)
            if raw.get("partial_rotary_factor") is not None:
                parameters.setdefault("partial_rotary_factor", raw["partial_rotary_factor"])
            if rope_type in _NEEDS_ORIGINAL_LENGTH:
                length = raw.get("max_position_embeddings", cls._field_default("max_position_embeddings"))
                parameters.setdefault("original_max_position_embeddings", length)
                if "original_max_position_embeddings" in raw:
                    parameters["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
                if rope_type == "yarn" and parameters.get("factor") is None:
                    parameters["factor"] = length / parameters["original_max_position_embeddings"]
        normalised["rope_parameters"] = parameters
        return normalised

    @classmethod
    def _field_default(cls, name: str) -> Any:
        return cls.default_rope_theta if name == "rope_theta" else cls.model_fields[name].default

    @classmethod
    def read_keys(cls) -> frozenset[str]:
        spellings = {"rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings"}
        return super().read_keys() | spellings

    @classmethod
    def unread_keys(cls, raw: Mapping[str, Any]) -> list[str]:
        unread = super().unread_keys(raw)
        for spelling in ("rope_scaling", "rope_parameters"):
            nested = raw.get(spelling)
            if isinstance(nested, Mapping):
                known = RopeParameters.model_fields.keys() | {"type"}
                unread += [f"{spelling}.{key}" for key in nested if key not in known]
        return sorted(unread)
