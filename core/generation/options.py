"""The settings of ``Sampling`` as keyword arguments, and those that a checkpoint brings along."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from core.errors import UsageError
from core.generation.sampling import Sampling

if TYPE_CHECKING:
    from core.generation.processors.custom import Processor

Function = TypeVar("Function", bound=Callable[..., Any])

_CHECKPOINT_SETTINGS = {
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "typical_p": float,
    "repetition_penalty": float,
}
"""Those that transformers has too, beside the temperature."""


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


def checkpoint_settings(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a ``generation_config.json`` names.

    The temperature only where ``do_sample`` is true: without, transformers takes the likeliest token.

    Raises:
        UsageError: a value that is no number, or out of range.
    """
    found = {name: checkpoint_number(generation_config, name, kind) for name, kind in _CHECKPOINT_SETTINGS.items()}
    if generation_config.get("do_sample") is True:
        temperature = checkpoint_number(generation_config, "temperature", float)
        found["temperature"] = 1.0 if temperature is None else temperature
    return {name: value for name, value in found.items() if value is not None}


def checkpoint_number(generation_config: Mapping[str, Any], name: str, kind: Any) -> Any:
    """One number of a ``generation_config.json``; None where it is absent or null.

    Raises:
        UsageError: it is no number, or as a setting out of range.
    """
    value = generation_config.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UsageError(f"generation_config.json: key {name!r} is not a number", found=repr(value))
    if name in SamplingOptions.__annotations__:
        try:
            sampling_from({name: kind(value)})
        except UsageError as error:
            raise UsageError(
                f"generation_config.json: {error.problem}",
                expected=error.expected,
                found=error.found,
                hint=f"Give {name} yourself.",
            ) from None
    return kind(value)
