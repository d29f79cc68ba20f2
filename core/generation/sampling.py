"""How tokens are chosen: the settings of one request, and what values they may have.

Knows no arrays; ``core.generation.processors`` says what each setting does to the logits.

The order, and why it is the default:

1. ``logit_bias``, ``penalties`` (repetition, frequency, presence), ``dry``: what changes logits, on the model's own
   scale. transformers and llama.cpp agree on this place and order (transformers has no DRY; it follows llama.cpp).
2. ``processors``: the user's own, which then see what the settings above made of the logits.
3. ``temperature``. The two disagree: transformers scales before it truncates, llama.cpp after. Settings that come with
   a checkpoint (``generation_config.json``) were chosen for transformers, so its order is the default.
4. ``top_k``, ``top_p``, ``min_p``, ``typical_p``: in this order in transformers, each on what the one before left.
5. ``xtc``: last, on what the truncations left, as in llama.cpp.

``order`` changes it, for instance to llama.cpp's. At temperature 0, the likeliest token that 1 and 2 leave is taken,
and 3 to 5 do nothing.
"""

from __future__ import annotations

import inspect
import math
import operator
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar

from core.errors import UsageError

if TYPE_CHECKING:
    from core.generation.processors.custom import Processor

DEFAULT_ORDER = (
    "logit_bias",
    "penalties",
    "dry",
    "processors",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "xtc",
)
"""The names that ``Sampling.order`` is made of, in the default order."""

Function = TypeVar("Function", bound=Callable[..., Any])

_TINY_TEMPERATURE = 1e-30  # below it, the noise is lost in the rounding of any logits
_NOTHING: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one request are chosen. At its default value, every setting does nothing.

    Attributes:
        temperature: divisor of the logits; 0 takes the likeliest token.
        top_p: keep the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        seed: of the random numbers; None draws one. They depend on it and on the token's position alone.
        min_p: keep tokens of at least this share of the likeliest one's probability; 0 keeps all.
        typical_p: keep the tokens whose surprise is closest to the expected one, up to this probability; 1 keeps all.
        xtc_probability: how often, for each token, all likely choices but the least likely of them are excluded.
        xtc_threshold: the probability that makes a choice likely, for XTC.
        repetition_penalty: divisor of the positive logits of tokens that occurred, factor of the negative; 1 does
            nothing.
        presence_penalty: subtracted from the logits of tokens that occurred.
        frequency_penalty: the same, times how often they occurred.
        penalty_context: the last tokens, of prompt and output, that the three penalties look at; None: all.
        dry_multiplier: penalty of a token that would extend a repetition of ``dry_allowed_length`` tokens; 0 is off.
        dry_base: the penalty grows by this factor with each further token of the repetition.
        dry_allowed_length: tokens that may repeat without a penalty for the next.
        dry_context: the last tokens, of prompt and output, in which repetitions are looked for; None: all.
        dry_breakers: ids of tokens that no repetition goes across.
        logit_bias: id → what is added to its logit; ``-inf`` forbids it.
        processors: the user's own, applied in turn (``core.generation.Processor``).
        order: the names of ``DEFAULT_ORDER``, in the order wanted. Names of settings that do nothing may be left out.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_context: int | None = None
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_context: int | None = None
    dry_breakers: Sequence[int] = ()
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NOTHING)
    processors: Sequence[Processor] = ()
    order: Sequence[str] = DEFAULT_ORDER

    @property
    def greedy(self) -> bool:
        """Whether no random number is needed."""
        return self.temperature < _TINY_TEMPERATURE

    def uses(self, name: str) -> bool:
        """Whether the entry ``name`` of an order does anything with these settings."""
        if name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "xtc") and self.greedy:
            return False
        return {
            "logit_bias": bool(self.logit_bias),
            "penalties": self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0,
            "dry": self.dry_multiplier != 0,
            "processors": bool(self.processors),
            "temperature": self.temperature != 1,
            "top_k": self.top_k != 0,
            "top_p": self.top_p != 1,
            "min_p": self.min_p != 0,
            "typical_p": self.typical_p != 1,
            "xtc": self.xtc_probability != 0,
        }[name]

    def checked(self) -> Self:
        """Itself, every value of its type and in its range, with a seed drawn where it needs one.

        Raises:
            UsageError: a value is out of range.
        """
        values: dict[str, Any] = {name: _number(name, getattr(self, name), *range_) for name, range_ in _RANGES.items()}
        for name, (least, may_be_none) in _COUNTS.items():
            values[name] = _count(name, getattr(self, name), least, may_be_none)
        values["logit_bias"] = _bias(self.logit_bias)
        values["dry_breakers"] = _ids("dry_breakers", self.dry_breakers)
        values["processors"] = _processors(self.processors)
        values["order"] = _order(self.order)
        whole = replace(self, **values)
        missing = [name for name in DEFAULT_ORDER if name not in whole.order and whole.uses(name)]
        if missing:
            raise UsageError(f"order leaves {', '.join(map(repr, missing))} out, which these settings use")
        return replace(whole, seed=secrets.randbits(32)) if whole.seed is None and not whole.greedy else whole


class SamplingOptions(TypedDict, total=False):
    """The fields of ``Sampling`` as keyword arguments; None stands for the default."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    min_p: float | None
    typical_p: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    penalty_context: int | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_context: int | None
    dry_breakers: Sequence[int] | None
    logit_bias: Mapping[int, float] | None
    processors: Sequence[Processor] | None
    order: Sequence[str] | None


def spelled_out(function: Function) -> Function:
    """Shows ``SamplingOptions`` one by one in a function's signature, where ``help`` and tests read it."""
    signature = inspect.signature(function)
    known = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    place = next((i + 1 for i, item in enumerate(known) if item.name == "max_tokens"), len(known))
    kind = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(name, kind, default=None, annotation=annotation)
        for name, annotation in SamplingOptions.__annotations__.items()
    ]
    shown: Any = function
    shown.__signature__ = signature.replace(parameters=[*known[:place], *options, *known[place:]])
    return function


def sampling_from(options: Mapping[str, Any]) -> Sampling:
    """Checked settings out of keyword arguments.

    Raises:
        UsageError: a name that is no setting, or a value out of range.
    """
    known = {item.name for item in fields(Sampling)}
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise UsageError(f"{unknown!r} is not a setting of generation", expected=", ".join(sorted(known)))
    return Sampling(**{name: value for name, value in options.items() if value is not None}).checked()


_INF = math.inf
# Name → how the range reads, and whether a value is in it.
_RANGES: dict[str, tuple[str, Any]] = {
    "temperature": ("0 or more", lambda x: 0 <= x < _INF),
    "top_p": ("more than 0, at most 1", lambda x: 0 < x <= 1),
    "min_p": ("0 to 1", lambda x: 0 <= x <= 1),
    "typical_p": ("more than 0, at most 1", lambda x: 0 < x <= 1),
    "xtc_probability": ("0 to 1", lambda x: 0 <= x <= 1),
    "xtc_threshold": ("more than 0, at most 0.5: of two likely choices, one is excluded", lambda x: 0 < x <= 0.5),
    "repetition_penalty": ("more than 0, at most 1000", lambda x: 0 < x <= 1000),
    "presence_penalty": ("-1000 to 1000", lambda x: -1000 <= x <= 1000),
    "frequency_penalty": ("-1000 to 1000", lambda x: -1000 <= x <= 1000),
    "dry_multiplier": ("0 to 1000", lambda x: 0 <= x <= 1000),
    "dry_base": ("1 to 1000", lambda x: 1 <= x <= 1000),
}
# Name → the least value, and whether None is one.
_COUNTS: dict[str, tuple[int | None, bool]] = {
    "top_k": (0, False),
    "seed": (None, True),
    "penalty_context": (1, True),
    "dry_allowed_length": (1, False),
    "dry_context": (1, True),
}


def _number(name: str, value: Any, expected: str, accepts: Any) -> float:
    if isinstance(value, str | bytes):
        raise UsageError(f"{name} must be a number", expected=expected, found=repr(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a number", expected=expected, found=repr(value)) from None
    if not accepts(number):
        raise UsageError(f"{name} is out of range", expected=expected, found=number)
    return number


def _count(name: str, value: Any, least: int | None, may_be_none: bool) -> int | None:
    if value is None and may_be_none:
        return None
    try:
        count = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be an integer", found=repr(value)) from None
    if least is not None and count < least:
        expected = f"{least} or more" + (", or None for all" if may_be_none else " (0 is all)" if least == 0 else "")
        raise UsageError(f"{name} is out of range", expected=expected, found=count)
    return count


def _ids(name: str, values: Any) -> tuple[int, ...]:
    try:
        ids = tuple(operator.index(value) for value in values)
    except TypeError:
        raise UsageError(f"{name} must be token ids", expected="integers", found=repr(values)[:60]) from None
    if ids and min(ids) < 0:
        raise UsageError(f"{name} must be token ids", expected="0 or more", found=min(ids))
    return ids


def _bias(values: Any) -> Mapping[int, float]:
    if not isinstance(values, Mapping):
        raise UsageError("logit_bias must be a mapping of token ids to numbers", found=repr(values)[:60])
    biases = [
        _number("a value of logit_bias", value, "a number, or -inf", lambda x: x < _INF) for value in values.values()
    ]
    return dict(zip(_ids("the keys of logit_bias", values), biases, strict=True)) or _NOTHING


def _processors(values: Any) -> tuple[Any, ...]:
    if callable(values) or not isinstance(values, Sequence) or not all(callable(value) for value in values):
        hint = "Each is called with (logits, context); see core.generation.Processor."
        raise UsageError("processors must be a list of callables", found=repr(values)[:60], hint=hint)
    return tuple(values)


def _order(names: Any) -> tuple[str, ...]:
    order = () if isinstance(names, str) else tuple(names)
    unknown = next((name for name in order if name not in DEFAULT_ORDER), None)
    if unknown is not None or isinstance(names, str):
        found = repr(names if isinstance(names, str) else unknown)
        raise UsageError("order is a list of processors' names", expected=", ".join(DEFAULT_ORDER), found=found)
    if len(set(order)) != len(order):
        twice = next(name for name in order if order.count(name) > 1)
        raise UsageError(f"order names {twice!r} twice")
    return order
