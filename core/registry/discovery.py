"""Discovery: the claims of installed packages, read from their metadata. Imports no plugin.

An entry point in the group ``core.architectures`` is a claim: its name is the type, its value the module. One package's
damaged metadata must not hide the others, so each distribution is read by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import PurePath

from core.registry.claim import TIERS, Claim, normalise, registered
from core.registry.requirement import DISTRIBUTION, refusal

_NAME = re.compile(r"(?:-\d.*)?\.[a-z]+-info$")
"""What follows the name in a directory of metadata: the version, and in an egg's the version of Python."""
_FIELD = re.compile(r"^(Name|Version|Requires-Dist):[ \t]*(.*(?:\n[ \t].*)*)", re.MULTILINE | re.IGNORECASE)
_BODY = re.compile(r"\r?\n\r?\n")
_GROUPS = {"core.architectures": "installed", "core.bundled": "bundled", "core.fallbacks": "fallback"}


def claims() -> list[Claim]:
    """Every claim of this process and of the installed packages, best tier first, then by type and distribution."""
    found = registered()
    for distribution in _claimants():
        found += _claims_of(distribution)
    return sorted(found, key=lambda c: (TIERS.index(c.tier), c.model_type, c.distribution or "", c.value))


def is_own(claim: Claim) -> bool:
    """Whether the claim is made by the distribution that this package is part of."""
    return claim.distribution is not None and normalise(claim.distribution) == DISTRIBUTION


def _claimants() -> Iterator[metadata.Distribution]:
    """The distributions whose entry points speak of this package, each once."""
    seen = set()
    for distribution in metadata.distributions():
        # Of two copies, the first on the path counts even if it claims nothing: imports find that one.
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
    """What the metadata's header says in the fields that matter here; nothing where it cannot be read.

    ``distribution.metadata`` parses all of it, the description (often a whole README) included, and each time anew.
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
        if distribution.read_text("requires.txt"):  # an egg's; its metadata has none
            return distribution.requires or []
    except Exception:
        return []
    return fields.get("requires-dist", [])


def _directory(distribution: metadata.Distribution) -> str:
    """The name of the directory that holds the metadata, which begins with the distribution's."""
    return PurePath(str(getattr(distribution, "_path", ""))).name
