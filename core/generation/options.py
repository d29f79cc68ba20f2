"""The settings of ``Sampling`` as keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ForwardRef, TypedDict, TypeVar

from core.errors import UsageError
from core.generation.sampling import Sampling

if TYPE_CHECKING:
    from core.generation.processors.custom import Processor

Function = TypeVar("Function", bound=Callable[..., Any])


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
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    bad_words_ids: Sequence[Sequence[int]] | None
    no_repeat_ngram_size: int | None
    min_new_tokens: int | None
    min_length: int | None
    processors: Sequence[Processor] | None
    order: Sequence[str] | None


def spelled_out(function: Function) -> Function:
    """Shows the settings of ``Sampling`` one by one in a function's signature, where ``help`` and tests read it."""
    signature = inspect.signature(function)
    known = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    place = next((i + 1 for i, item in enumerate(known) if item.name == "max_tokens"), len(known))
    kind = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(item.name, kind, default=None, annotation=ForwardRef(_optional(item.type), module=__name__))
        for item in fields(Sampling)
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


def _optional(annotation: object) -> str:
    """The annotation of a value that may also be None."""
    return f"{str(annotation).removesuffix(' | None')} | None"
