"""Finds the claims of installed packages in their metadata. Imports no plugin.

An entry point in the group ``core.architectures`` is a claim: its name is the type, its value the module. Each
distribution is read by itself, so that damaged metadata of one does not hide the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import PurePath

from core.registry.claim import TIERS, Claim, normalise, registered
from core.registry.requirement import DISTRIBUTION, refusal

_NAME = re.compile(r"(?:-\d.*)?\.[a-z]+-info$")
"""The part of a metadata directory's name after the distribution's: the version, and in an egg the Python version."""
_FIELD = re.compile(r"^(Name|Version|Requires-Dist):[ \t]*(.*(?:\n[ \t].*)*)", re.MULTILINE | re.IGNORECASE)
_BODY = re.compile(r"\r?\n\r?\n")
_GROUPS = {"core.architectures": "installed", "core.bundled": "bundled", "core.fallbacks": "fallback"}


def claims() -> list[Claim]:
    """Every claim of this process and of the installed packages, sorted by tier, type and distribution."""
    found = registered()
    for distribution in _claimants():
        found += _claims_of(distribution)
    return sorted(found, key=lambda c: (TIERS.index(c.tier), c.model_type, c.distribution or "", c.value))


def is_own(claim: Claim) -> bool:
    """Whether the distribution of this package makes the claim."""
    return claim.distribution is not None and normalise(claim.distribution) == DISTRIBUTION


def _claimants() -> Iterator[metadata.Distribution]:
    """The distributions with entry points for this package, each once."""
    seen = set()
    for distribution in metadata.distributions():
        # Of two copies, the first on the path counts even if it claims nothing, because imports find that one.
        name = normalise(_NAME.sub("", _directory(distribution)) or _fields(distribution).get("name", [""])[0])
        if name in seen:
            continue
        seen.add(name)
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except (OSError, UnicodeError):
            yield distribution
            continue
        if any(group in text for group in _GROUPS):
            yield distribution


def _claims_of(distribution: metadata.Distribution) -> list[Claim]:
    fields = _fields(distribution)
    name, version = (fields.get(key, [None])[0] for key in ("name", "version"))
    name = name or _directory(distribution)
    try:
        entries = [entry for entry in distribution.entry_points if entry.group in _GROUPS]
    except Exception as error:  # importlib.metadata has no error of its own for a malformed file
        fault = f"its entry_points.txt cannot be read ({type(error).__name__}: {error})"
        return [Claim("?", "installed", "entry_points.txt", name, version, fault)]
    incompatible = refusal(_requirements(distribution, fields)) if entries else None
    found = []
    for entry in entries:
        tier = _GROUPS[entry.group]
        claim = Claim("*" if tier == "fallback" else entry.name, tier, entry.value, name, version, incompatible)
        if tier == "installed" and is_own(claim):
            claim = Claim(entry.name, "builtin", entry.value, name, version)
        try:
            claim.target()
        except ValueError as error:
            claim = Claim(claim.model_type, claim.tier, entry.value, name, version, str(error))
        found.append(claim)
    return found


def _fields(distribution: metadata.Distribution) -> dict[str, list[str]]:
    """The fields of the metadata's header that are needed here; empty if it cannot be read.

    ``distribution.metadata`` would parse everything at each access, also the description (often a whole README).
    """
    try:
        text = next(filter(None, map(distribution.read_text, ("METADATA", "PKG-INFO", ""))), "")
    except (OSError, UnicodeError):
        return {}
    found: dict[str, list[str]] = {}
    for name, value in _FIELD.findall(_BODY.split(text, maxsplit=1)[0]):
        found.setdefault(name.lower(), []).append(" ".join(value.split()))
    return found


def _requirements(distribution: metadata.Distribution, fields: dict[str, list[str]]) -> list[str]:
    try:
        if distribution.read_text("requires.txt"):  # an egg lists requirements there, and not in its metadata
            return distribution.requires or []
    except Exception:
        return []
    return fields.get("requires-dist", [])


def _directory(distribution: metadata.Distribution) -> str:
    """The name of the metadata directory, which begins with the distribution's name."""
    return PurePath(str(getattr(distribution, "_path", ""))).name
