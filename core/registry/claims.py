"""Claims: which plugin says that it loads which ``model_type``, read from package metadata without importing anything.

An entry point in the group ``core.architectures`` is a claim: its name is the type, its value the module.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import threading
from dataclasses import dataclass, field
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from core.errors import UsageError

DISTRIBUTION = "corelm"
BLOCK_VARIABLE = "CORE_BLOCK_PLUGINS"
# Group → tier. Lower wins; within core.architectures, this distribution's own claims come before third parties'.
_GROUPS = {"core.architectures": "installed", "core.bundled": "bundled"}
FALLBACK_GROUP = "core.fallbacks"
TIERS = ("registered", "builtin", "installed", "bundled", "fallback")


@dataclass(frozen=True)
class Claim:
    """One plugin's claim to one ``model_type``.

    Attributes:
        model_type: the type claimed; ``*`` for a fallback, which is asked.
        tier: ``registered`` (in this process), ``builtin``, ``installed``, ``bundled`` or ``fallback``; earlier ones win.
        value: the module, as the entry point has it.
        distribution, version: the package that ships it; None for a registered object.
        plugin: the object itself, for a registered one.
        requirement: what the package asks of this one (``corelm>=0.1``), if it does.
    """

    model_type: str
    tier: str
    value: str
    distribution: str | None = None
    version: str | None = None
    requirement: str | None = None
    plugin: Any = field(default=None, compare=False, repr=False)
    metadata: importlib.metadata.Distribution | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        if self.distribution is None:
            return f"{self.value} ({self.tier})"
        return f"{self.distribution} {self.version} (entry point {self.model_type} = {self.value})"

    @property
    def blocked(self) -> bool:
        """Whether the environment's block list names this claim's distribution, module or type."""
        listed = {_normalise(name) for name in os.environ.get(BLOCK_VARIABLE, "").split(",") if name.strip()}
        names = {self.value, self.model_type} | ({self.distribution} if self.distribution else set())
        return self.tier != "registered" and bool(listed & {_normalise(name) for name in names})

    def incompatible(self) -> str | None:
        """Why this version of core is not one that the plugin's package asks for; None when it is."""
        if self.requirement is None:
            return None
        try:
            wanted = Requirement(self.requirement).specifier
        except InvalidRequirement:
            return f"its requirement {self.requirement!r} is malformed"
        version = importlib.metadata.version(DISTRIBUTION)
        return None if wanted.contains(version, prereleases=True) else f"it requires {self.requirement}, this is {version}"


_registered: dict[str, Claim] = {}
_lock = threading.Lock()


def register(model_type: str, plugin: Any) -> None:
    """Claims a ``model_type`` for a module or object in this process, before anything that is installed.

    Raises:
        UsageError: the type is already registered, or not a non-empty string.
    """
    if not isinstance(model_type, str) or not model_type:
        raise UsageError("model_type must be a non-empty string", found=repr(model_type))
    with _lock:
        if model_type in _registered:
            raise UsageError(
                f"model_type {model_type!r} is already registered, by {_registered[model_type].value}",
                hint=f"core.unregister({model_type!r}) first.",
            )
        name = getattr(plugin, "__name__", None) or type(plugin).__qualname__
        _registered[model_type] = Claim(model_type, "registered", name, plugin=plugin)


def unregister(model_type: str) -> None:
    """Takes a registration back; models that are already loaded keep working.

    Raises:
        UsageError: the type is not registered.
    """
    with _lock:
        if _registered.pop(model_type, None) is None:
            raise UsageError(f"model_type {model_type!r} is not registered", expected=", ".join(_registered) or "none is")


def claims() -> list[Claim]:
    """Every claim of this process and of the installed packages, best tier first, then by type and distribution."""
    with _lock:
        found = list(_registered.values())
    for group, tier in (*_GROUPS.items(), (FALLBACK_GROUP, "fallback")):
        found += [_from_entry_point(entry, tier) for entry in importlib.metadata.entry_points(group=group)]
    return sorted(found, key=lambda c: (TIERS.index(c.tier), c.model_type, c.distribution or "", c.value))


def _from_entry_point(entry: importlib.metadata.EntryPoint, tier: str) -> Claim:
    distribution = entry.dist
    name = distribution.name if distribution is not None else None
    if tier == "installed" and name is not None and _normalise(name) == DISTRIBUTION:
        tier = "builtin"
    return Claim(
        model_type="*" if tier == "fallback" else entry.name,
        tier=tier,
        value=entry.value,
        distribution=name,
        version=distribution.version if distribution is not None else None,
        requirement=_requirement(distribution),
        metadata=distribution,
    )


def _requirement(distribution: importlib.metadata.Distribution | None) -> str | None:
    """The package's requirement on this one, without extras' conditional requirements."""
    if distribution is None:
        return None
    for line in distribution.requires or []:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if name and _normalise(name.group()) == DISTRIBUTION and "extra ==" not in line:
            return line
    return None


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def same_name(one: str, other: str) -> bool:
    """Whether two distribution names are the same, as package indexes see it."""
    return _normalise(one) == _normalise(other)


