"""Discovery: the claims of installed packages, read from their metadata. Imports no plugin.

An entry point in the group ``core.architectures`` is a claim: its name is the type, its value the module. One package's
damaged metadata must not hide the others, so each distribution is read by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import PurePath

import core
from core.registry.claim import TIERS, Claim, normalise, registered

DISTRIBUTION = "corelm"
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
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except (OSError, UnicodeError):
            yield distribution
            continue
        if not any(group in text for group in _GROUPS):
            continue
        name = normalise(_identity(distribution)[0])
        if name not in seen:
            seen.add(name)
            try:
                # Of two copies, the first on the path counts even if it claims nothing: imports find that one.
                yield metadata.distribution(name)
            except metadata.PackageNotFoundError:
                yield distribution


def _claims_of(distribution: metadata.Distribution) -> list[Claim]:
    name, version = _identity(distribution)
    try:
        entries = [entry for entry in distribution.entry_points if entry.group in _GROUPS]
    except Exception as error:  # importlib.metadata has no error of its own for a malformed file
        fault = f"its entry_points.txt cannot be read ({type(error).__name__}: {error})"
        return [Claim("?", "installed", "entry_points.txt", name, version, fault)]
    incompatible = _incompatible(distribution) if entries else None
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


def _identity(distribution: metadata.Distribution) -> tuple[str, str | None]:
    """The distribution's name and version; where its metadata has no name, its directory's."""
    try:
        fields = distribution.metadata
        known = {key: fields[key] for key in ("Name", "Version") if key in fields}
    except Exception:  # no METADATA file: the type of the error depends on Python's version
        known = {}
    return known.get("Name") or PurePath(str(getattr(distribution, "_path", "unknown"))).name, known.get("Version")


def _incompatible(distribution: metadata.Distribution) -> str | None:
    """Why this version of core is not one that the distribution asks for; None when it is."""
    try:
        lines = distribution.requires or []
    except Exception:
        return None
    lines = [line for line in lines if DISTRIBUTION in normalise(line)]
    if not lines:
        return None
    # Only plugins that state a requirement pay for this import.
    from packaging.requirements import InvalidRequirement, Requirement

    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            if re.match(rf"{DISTRIBUTION}(?![\w-])", normalise(line)):
                return f"its requirement {line!r} is malformed"
            continue
        if normalise(requirement.name) != DISTRIBUTION:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        # A requirement by URL has no versions; the installer has seen to it.
        if not requirement.specifier.contains(core.__version__, prereleases=True):
            return f"it requires {line}, and this is {DISTRIBUTION} {core.__version__}"
    return None
