"""``Claim``: the statement that a plugin loads a ``model_type``. Claims come from this process and from installed
packages.

No plugin is imported here.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, field
from typing import Any

from core.errors import UsageError

BLOCK_VARIABLE = "CORE_BLOCK_PLUGINS"
TIERS = ("explicit", "registered", "builtin", "installed", "bundled", "fallback")
"""Precedence: only the claims of the first tier that has any count."""

_IDENTIFIER = r"[^\W\d]\w*"
_PATH = rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*"
# An entry point's value as the packaging specification has it: module, optionally ``:object``, optionally ``[extras]``.
_VALUE = re.compile(rf"({_PATH})\s*(?::\s*({_PATH}))?\s*(?:\[.*\])?")


@dataclass(frozen=True)
class Claim:
    """One plugin's claim to one ``model_type``.

    Attributes:
        model_type: the type claimed; ``*`` for a fallback, which is asked; ``?`` where the metadata cannot be read.
        tier: one of ``TIERS``, the earliest wins. ``explicit`` is what the caller or the environment asked for,
            ``registered`` is of this process, the others are installed.
        value: the module, or ``module:object``, as in the entry point.
        distribution, version: the package that ships it; None for a plugin registered in this process.
        fault: why it cannot be used, according to its metadata; None without such a reason.
        plugin: the object itself, if one was given.
    """

    model_type: str
    tier: str
    value: str
    distribution: str | None = None
    version: str | None = None
    fault: str | None = None
    plugin: Any = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        if self.distribution is None:
            return f"{self.value} ({self.tier})"
        return f"{self.distribution} {self.version or '(no version)'} (entry point {self.model_type} = {self.value})"

    def target(self) -> tuple[str, str]:
        """The module to import, and the dotted path of the object in it; the path is empty for the module itself.

        Raises:
            ValueError: the value names neither.
        """
        match = _VALUE.fullmatch(self.value.strip())
        if match is None:
            raise ValueError(f"{self.value!r} is neither a module's dotted path nor module:object")
        return match[1], match[2] or ""

    @property
    def blocked(self) -> bool:
        """Whether the environment's block list names this claim's distribution, module or type.

        Objects given in this process are not blocked, because the caller has imported them already.
        """
        if self.plugin is not None:
            return False
        listed = {normalise(name) for name in os.environ.get(BLOCK_VARIABLE, "").split(",") if name.strip()}
        # An explicit module is not a claim to the type, so blocking the type does not block it.
        names = [self.value, self.value.partition(":")[0], self.distribution or ""]
        names += [] if self.tier == "explicit" else [self.model_type]
        return not listed.isdisjoint(map(normalise, names))


_registered: dict[str, Claim] = {}
_lock = threading.Lock()


def given(model_type: str, tier: str, plugin: Any) -> Claim:
    """The claim of a plugin given in this process: an object or module with the hooks, or a module's dotted path."""
    if isinstance(plugin, str):
        return Claim(model_type, tier, plugin)
    return Claim(model_type, tier, getattr(plugin, "__name__", None) or type(plugin).__qualname__, plugin=plugin)


def register(model_type: str, plugin: Any) -> None:
    """Claims a ``model_type`` for a plugin in this process. It takes precedence over every installed plugin.

    Args:
        model_type: the type to claim.
        plugin: a module or object with the hooks, or a module's dotted path, which the first load imports.

    Raises:
        UsageError: the type is already registered, or not a non-empty string; the plugin is None.
    """
    if not isinstance(model_type, str) or not model_type:
        raise UsageError("model_type must be a non-empty string", found=repr(model_type))
    if plugin is None:
        raise UsageError("the plugin to register is None", expected="a module or an object with hooks")
    with _lock:
        if model_type in _registered:
            raise UsageError(
                f"model_type {model_type!r} is already registered, by {_registered[model_type].value}",
                hint=f"core.unregister({model_type!r}) first.",
            )
        _registered[model_type] = given(model_type, "registered", plugin)


def unregister(model_type: str) -> None:
    """Removes a registration. Models that are already loaded keep working.

    Raises:
        UsageError: the type is not registered.
    """
    with _lock:
        if _registered.pop(model_type, None) is None:
            raise UsageError(
                f"model_type {model_type!r} is not registered", expected=", ".join(_registered) or "none is"
            )


def registered() -> list[Claim]:
    """The claims of this process."""
    with _lock:
        return list(_registered.values())


def normalise(name: str) -> str:
    """A name in the form in which package indexes compare it: without differences of case and separators."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
