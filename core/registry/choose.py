"""Choosing the one claim that serves a load: explicit, then registered, built-in, installed, bundled, fallback."""

from __future__ import annotations

import difflib
import os
from typing import Any

from core.errors import PluginError, UnknownModelTypeError
from core.registry.claims import BLOCK_VARIABLE, DISTRIBUTION, TIERS, Claim, claims, same_name
from core.registry.importing import import_claim

OVERRIDE_VARIABLE = "CORE_PLUGIN"


def choose(model_type: str, plugin: Any = None) -> Claim:
    """The claim that loads ``model_type``.

    Args:
        plugin: overrides the choice: a module or object with the hooks, the name of an installed distribution that claims
            the type, or a module's dotted path. The environment variable ``CORE_PLUGIN`` does the same for every load,
            or, written ``type=module``, for one type (several separated by commas).

    Raises:
        UnknownModelTypeError: nobody claims the type; names close matches, what is installed, and the ways out.
        PluginError: two installed packages claim it, or the only claimants are blocked or ask for another core.
    """
    found = claims()
    if plugin is None:
        plugin = _override(model_type)
    if plugin is not None:
        return _explicit(model_type, plugin, found)
    candidates = [claim for claim in found if claim.model_type == model_type]
    for tier in TIERS:
        usable = [claim for claim in candidates if claim.tier == tier and not claim.blocked]
        if len(usable) > 1:
            raise _conflict(model_type, usable)
        if usable:
            return _compatible(usable[0])
    fallback = _ask_fallbacks(model_type, found)
    if fallback is not None:
        return fallback
    raise _unknown(model_type, candidates, found)


def status(claim: Claim, found: list[Claim]) -> str:
    """What a claim is worth at the moment: ``active``, or why not."""
    if claim.blocked:
        return f"blocked by {BLOCK_VARIABLE}"
    problem = claim.incompatible()
    if problem is not None:
        return f"unusable: {problem}"
    if claim.tier == "fallback":
        return "fallback: asked when nobody claims a type"
    rivals = [other for other in found if other.model_type == claim.model_type and not other.blocked]
    best = min(rivals, key=lambda other: TIERS.index(other.tier))
    same_tier = [other for other in rivals if other.tier == best.tier]
    if claim.tier != best.tier:
        return f"shadowed by {best}"
    if len(same_tier) > 1:
        return f"in conflict with {', '.join(str(other) for other in same_tier if other is not claim)}"
    return "active"


def _override(model_type: str) -> str | None:
    for item in os.environ.get(OVERRIDE_VARIABLE, "").split(","):
        name, separator, value = item.strip().partition("=")
        if separator and name == model_type:
            return value
        if name and not separator:
            return name
    return None


def _explicit(model_type: str, plugin: Any, found: list[Claim]) -> Claim:
    if not isinstance(plugin, str):
        name = getattr(plugin, "__name__", None) or type(plugin).__qualname__
        return Claim(model_type, "registered", name, plugin=plugin)
    named = [claim for claim in found if claim.distribution is not None and same_name(claim.distribution, plugin)]
    for claim in named:
        if claim.model_type == model_type:
            return _compatible(claim)
    if named:
        types = ", ".join(claim.model_type for claim in named)
        raise PluginError(f"distribution {plugin!r} does not claim model_type {model_type!r}", found=f"claims of {types}")
    return Claim(model_type, "registered", plugin)


def _compatible(claim: Claim) -> Claim:
    problem = claim.incompatible()
    if problem is not None:
        raise PluginError(
            f"plugin {claim} cannot be used: {problem}",
            hint=f"pip install --upgrade {claim.distribution} {DISTRIBUTION}",
        )
    return claim


def _conflict(model_type: str, usable: list[Claim]) -> PluginError:
    names = " and ".join(str(claim) for claim in usable)
    first = usable[0].distribution
    return PluginError(
        f"model_type {model_type!r} is claimed by {names}",
        hint=f"Choose one: core.load(…, plugin={first!r}), or block the other with {BLOCK_VARIABLE}=NAME, or uninstall it.",
    )


def _ask_fallbacks(model_type: str, found: list[Claim]) -> Claim | None:
    """Imports the fallbacks and asks each; a broken one hurts nobody who did not need it."""
    willing = []
    for claim in found:
        if claim.tier != "fallback" or claim.blocked or claim.incompatible():
            continue
        try:
            module = import_claim(claim)
            accepts = bool(module.claims(model_type))
        except PluginError:
            continue
        except Exception:
            continue
        if accepts:
            willing.append(Claim(model_type, "fallback", claim.value, claim.distribution, claim.version, plugin=module))
    if len(willing) > 1:
        raise _conflict(model_type, willing)
    return willing[0] if willing else None


def _unknown(model_type: str, candidates: list[Claim], found: list[Claim]) -> UnknownModelTypeError:
    known = sorted({claim.model_type for claim in found if claim.model_type != "*"})
    hints = [f"{claim} claims it, but is {status(claim, found)}." for claim in candidates]
    close = difflib.get_close_matches(model_type, known, n=3)
    if close:
        hints.append(f"Did you mean {' or '.join(map(repr, close))}?")
    if not any(claim.tier == "builtin" for claim in found):
        hints.append(f"The built-in plugins are not there: the package {DISTRIBUTION} is not installed (pip install -e .).")
    hints.append(
        f"Install a plugin for it (pip install corelm-{model_type} if someone published one), or write one: CONTRIBUTING.md."
    )
    return UnknownModelTypeError(
        f"no installed plugin loads model_type {model_type!r}",
        found=f"plugins for {', '.join(known)}" if known else "no plugin at all",
        hint="\n  ".join(hints),
    )
