"""The fields of ``Sampling``, as the table of settings has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any, TypeVar

from core.sampling.kinds import Bias, Ids, Words
from core.sampling.settings import SETTINGS

Class = TypeVar("Class", bound=type[Any])


def default(name: str) -> Any:
    """What a class body gives the field of a setting."""
    value = SETTINGS[name].default
    return field(default_factory=value.copy) if isinstance(value, dict) else value


def completed(settings: Class) -> Class:
    """Adds the settings that the class does not spell out; ``dataclass`` then makes fields of them all."""
    for name, setting in SETTINGS.items():
        if name not in settings.__annotations__:
            settings.__annotations__[name] = setting.kind.annotation
            setattr(settings, name, default(name))
    return settings


def token_ids(settings: Any) -> Iterator[tuple[str, Sequence[int]]]:
    """The settings that hold token ids, and their ids."""
    for name, setting in SETTINGS.items():
        if isinstance(setting.kind, Ids | Words | Bias):
            yield name, setting.kind.token_ids(getattr(settings, name))
