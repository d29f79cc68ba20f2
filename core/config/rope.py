"""Rotary-embedding settings: normalises every published spelling into ``RopeParameters``.

Two spellings exist: ``rope_theta`` beside ``rope_scaling`` (transformers 4), and ``rope_parameters`` holding both
(transformers 5). The arithmetic is in ``core.nn.rope``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from core.config.base import ModelConfig

_REQUIRED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("original_max_position_embeddings",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
# What each type reads beside rope_type, rope_theta and partial_rotary_factor.
_READ: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
    "llama3": frozenset({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
    "longrope": frozenset(
        {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"}
    ),
}
_ALWAYS_READ = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
# Types whose arithmetic needs the pre-training context length; transformers fills it from max_position_embeddings.
_NEEDS_ORIGINAL_LENGTH = frozenset({"yarn", "llama3", "longrope"})


def _within_reach(value: float) -> float:
    """Rejects values whose powers and quotients would leave float32; published ones lie between 0.1 and 1e8."""
    if not 1e-9 <= value <= 1e18:
        raise ValueError(f"{value:g} is too {'small' if value < 1 else 'large'} to compute a rotary embedding with")
    return value


_Number = Annotated[PositiveFloat, AfterValidator(_within_reach)]
_NumberOrZero = Annotated[float, AfterValidator(lambda value: value and _within_reach(value))]
_Length = Annotated[int, Field(ge=1, lt=2**31)]


class RopeParameters(BaseModel):
    """One rotary embedding, as transformers 5 writes it (``transformers/modeling_rope_utils.py``).

    ``rope_theta`` is the base; lengths are in tokens; ``factor`` and the others are dimensionless. Keys that the chosen
    ``rope_type`` does not use stay ``None``.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    rope_type: Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"] = "default"
    rope_theta: _Number
    partial_rotary_factor: Annotated[float, AfterValidator(_within_reach)] = Field(default=1.0, gt=0, le=1)
    factor: _Number | None = None
    original_max_position_embeddings: _Length | None = None
    attention_factor: _Number | None = None
    beta_fast: _Number | None = None
    beta_slow: _Number | None = None
    mscale: _NumberOrZero | None = None
    mscale_all_dim: _NumberOrZero | None = None
    truncate: bool = True
    low_freq_factor: _Number | None = None
    high_freq_factor: _Number | None = None
    short_factor: list[_Number] | None = None
    long_factor: list[_Number] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [key for key in _REQUIRED.get(self.rope_type, ()) if getattr(self, key) is None]
        if missing:
            raise ValueError(f"rope_type {self.rope_type!r} needs {', '.join(missing)}")
        if self.rope_type == "yarn" and self.rope_theta <= 1:
            raise ValueError(f"rope_type 'yarn' needs rope_theta above 1, not {self.rope_theta}")
        if self.rope_type == "longrope" and self.original_max_position_embeddings == 1:
            raise ValueError("rope_type 'longrope' needs original_max_position_embeddings above 1")
        low, high = self.low_freq_factor, self.high_freq_factor
        if self.rope_type == "llama3" and low is not None and high is not None and low >= high:
            raise ValueError(f"low_freq_factor ({low}) must be below high_freq_factor ({high})")
        return self


class RotaryConfig(ModelConfig):
    """A config whose attention rotates queries and keys.

    Attributes:
        default_rope_theta: the base where the file names none; each architecture sets its own.
        rotates_partially: whether the architecture reads ``partial_rotary_factor``. If not, a value other than 1 is
            refused, since the reference implementation would ignore it.
    """

    default_rope_theta: ClassVar[float] = 10_000.0
    rotates_partially: ClassVar[bool] = False

    max_position_embeddings: PositiveInt
    rope_parameters: RopeParameters

    @model_validator(mode="before")
    @classmethod
    def _normalise_rope(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or isinstance(raw.get("rope_parameters"), RopeParameters):
            return raw
        normalised = dict(raw)
        # transformers' precedence: a rope_scaling that is not empty replaces rope_parameters.
        parameters = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
        if isinstance(parameters, Mapping):
            parameters = dict(parameters)
            legacy_type = parameters.pop("type", None)
            rope_type = parameters.setdefault("rope_type", legacy_type or "default")
            theta = raw.get("rope_theta")
            parameters.setdefault("rope_theta", cls._field_default("rope_theta") if theta is None else theta)
            if raw.get("partial_rotary_factor") is not None:
                parameters.setdefault("partial_rotary_factor", raw["partial_rotary_factor"])
            if isinstance(rope_type, str) and rope_type in _NEEDS_ORIGINAL_LENGTH:
                length = raw.get("max_position_embeddings", cls._field_default("max_position_embeddings"))
                original = parameters.setdefault("original_max_position_embeddings", length)
                if "original_max_position_embeddings" in raw:
                    original = parameters["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
                if rope_type == "yarn" and parameters.get("factor") is None and _is_size(length) and _is_size(original):
                    parameters["factor"] = length / original
        normalised["rope_parameters"] = parameters
        return normalised

    @model_validator(mode="after")
    def _fits_the_heads(self) -> Self:
        head_dim, rope = getattr(self, "head_dim", None), self.rope_parameters
        if rope.partial_rotary_factor != 1 and not self.rotates_partially:
            raise ValueError(
                f"partial_rotary_factor is {rope.partial_rotary_factor}, but {self.model_type} rotates whole heads"
            )
        if head_dim is None:
            return self
        dims = int(head_dim * rope.partial_rotary_factor)
        if dims % 2 or dims == 0:
            raise ValueError(
                f"rotary embedding needs an even number of features in each head, not {dims} (head_dim {head_dim})"
            )
        if rope.rope_type == "dynamic" and dims == 2:
            raise ValueError("rope_type 'dynamic' needs more than 2 rotated features in each head")
        for name in ("short_factor", "long_factor") if rope.rope_type == "longrope" else ():
            count = len(getattr(rope, name))
            if count != dims // 2:
                raise ValueError(
                    f"{name} of the rotary embedding has {count} numbers, but each head has {dims // 2} pairs"
                )
        return self

    @classmethod
    def spelling(cls, raw: Mapping[str, Any], path: tuple[str | int, ...]) -> tuple[str | int, ...]:
        if path[:1] != ("rope_parameters",):
            return path
        home = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
        held = raw.get(home)
        held = held if isinstance(held, Mapping) else {}
        name = path[1] if len(path) > 1 else None
        if name == "rope_type" and "rope_type" not in held and "type" in held:
            return (home, "type")
        if name in ("rope_theta", "partial_rotary_factor") and name not in held:
            return path[1:]
        if name == "original_max_position_embeddings" and (name in raw or name not in held):
            return (name if name in raw else "max_position_embeddings",)
        return (home, *path[1:])

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
        home = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
        if home == "rope_scaling" and raw.get("rope_parameters"):
            unread.append("rope_parameters")
        nested = raw.get(home)
        if not isinstance(nested, Mapping):
            return sorted(unread)
        rope_type = nested.get("rope_type", nested.get("type")) or "default"
        known = _ALWAYS_READ | (_READ.get(rope_type, frozenset()) if isinstance(rope_type, str) else frozenset())
        # Keys that the type does not use are null where transformers writes all keys.
        unread += [f"{home}.{key}" for key, value in nested.items() if key not in known and value is not None]
        # Keys beside the block count only where the block lacks them.
        beside = ("rope_theta", "partial_rotary_factor")
        unread += [key for key in beside if key in nested and raw.get(key) not in (None, nested[key])]
        return sorted(unread)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0
