"""``choose``: the one claim that serves a load. Order: explicit, registered, built-in, installed, bundled, fallback."""

from __future__ import annotations

import difflib
import os
import shlex
from dataclasses import replace
from typing import Any

from core.errors import PluginError, UnknownModelTypeError
from core.registry.claim import BLOCK_VARIABLE, TIERS, Claim, given, normalise
from core.registry.discovery import claims, is_own
from core.registry.importing import brief, import_claim
from core.registry.requirement import DISTRIBUTION

OVERRIDE_VARIABLE = "CORE_PLUGIN"


def choose(model_type: str, plugin: Any = None) -> Claim:
    """The claim that loads ``model_type``.

    Args:
        model_type: of the config.
        plugin: overrides the choice: a module or object with the hooks, the name of an installed distribution that
            claims the type, or a module's dotted path. The environment variable ``CORE_PLUGIN`` does the same for every
            load, or, written ``type=plugin``, for one type (several separated by commas).

    Raises:
        UnknownModelTypeError: no plugin claims the type. The error names close matches, what is installed, and what to
            do.
        PluginError: two installed packages claim it; or the one that does is blocked, or requires another version of
            core.
    """
    found = claims()
    if plugin is None:
        plugin = _override(model_type)
    if plugin is not None:
        return _explicit(model_type, plugin, found)
    candidates = [claim for claim in found if claim.model_type == model_type]
    for tier in TIERS:
        rivals = [claim for claim in candidates if claim.tier == tier and not claim.blocked]
        if rivals:
            return _only(model_type, rivals)
    fallback, failures = _ask_fallbacks(model_type, found)
    return fallback or _refuse(model_type, candidates, found, failures)


def status(claim: Claim, found: list[Claim]) -> str:
    """The state of a claim among all that were ``found``: ``active``, or why it is not."""
    if claim.blocked:
        return f"blocked by {BLOCK_VARIABLE}"
    if claim.fault is not None:
        return f"unusable: {claim.fault}"
    if claim.tier == "fallback":
        return "fallback: asked when no plugin claims a type"
    rivals = [other for other in found if other.model_type == claim.model_type and not other.blocked]
    best = min((other.tier for other in rivals), key=TIERS.index)
    first = [other for other in rivals if other.tier == best]
    if claim.tier != best:
        return f"shadowed by {' and '.join(map(str, first))}"
    if len(first) > 1:
        return f"in conflict with {', '.join(str(other) for other in first if other is not claim)}"
    return "active"


def _override(model_type: str) -> str | None:
    """The plugin that the environment asks for; an entry for this type wins over one for all types."""
    for_all = None
    for item in os.environ.get(OVERRIDE_VARIABLE, "").split(","):
        name, separator, value = (part.strip() for part in item.partition("="))
        if separator and name == model_type and value:
            return value
        if name and not separator:
            for_all = for_all or name
    return for_all


def _explicit(model_type: str, plugin: Any, found: list[Claim]) -> Claim:
    if not isinstance(plugin, str):
        return given(model_type, "explicit", plugin)
    theirs = [c for c in found if c.distribution is not None and normalise(c.distribution) == normalise(plugin)]
    if not theirs:
        return _usable(given(model_type, "explicit", plugin))
    # A fallback that the user names is not asked whether it accepts the type.
    named = [claim for claim in theirs if claim.model_type == model_type] or [c for c in theirs if c.tier == "fallback"]
    if not named:
        types = ", ".join(claim.model_type for claim in theirs)
        raise PluginError(
            f"distribution {plugin!r} does not claim model_type {model_type!r}", found=f"claims of {types}"
        )
    return _only(model_type, named)


def _only(model_type: str, rivals: list[Claim]) -> Claim:
    if len(rivals) == 1:
        return _usable(rivals[0])
    names = [claim.distribution for claim in rivals]
    ways = names if len(set(names)) == len(names) else [claim.value for claim in rivals]
    raise PluginError(
        f"model_type {model_type!r} is claimed by {' and '.join(map(str, rivals))}",
        hint=f"Choose one: core.load(…, plugin={ways[0]!r}) or {OVERRIDE_VARIABLE}={model_type}={ways[0]}; or block or "
        f"uninstall the other: {BLOCK_VARIABLE}={ways[1]}.",
    )


def _usable(claim: Claim) -> Claim:
    if claim.blocked:
        raise PluginError(f"plugin {claim} is blocked by {BLOCK_VARIABLE}={os.environ[BLOCK_VARIABLE]}")
    if claim.fault is not None:
        raise PluginError(
            f"plugin {claim} cannot be used: {claim.fault}",
            hint=f"pip install --upgrade {claim.distribution} {DISTRIBUTION}",
        )
    return claim


def _ask_fallbacks(model_type: str, found: list[Claim]) -> tuple[Claim | None, list[str]]:
    """Imports the fallbacks and asks each. Returns the one that accepts the type, and the errors of the others."""
    willing, failures = [], []
    for claim in found:
        if claim.tier != "fallback" or claim.blocked or claim.fault:
            continue
        try:
            module = import_claim(claim)
            accepts = module.claims(model_type)
        except KeyboardInterrupt:
            raise
        except PluginError as error:
            failures.append(f"{error.problem}.")
        except BaseException as error:  # as at import, any error is possible; it must not stop other loads
            failures.append(f"fallback {claim} failed when asked: {brief(error)}.")
        else:
            if accepts:
                willing.append(replace(claim, model_type=model_type, plugin=module))
    return (_only(model_type, willing) if willing else None), failures


def _refuse(model_type: str, candidates: list[Claim], found: list[Claim], failures: list[str]) -> Claim:
    known = sorted({claim.model_type for claim in found} - {"*", "?"})
    hints = [f"{claim} claims it, but is {status(claim, found)}." for claim in candidates]
    hints += [f"{claim.distribution} {claim.version}: {claim.fault}." for claim in found if claim.model_type == "?"]
    hints += failures
    close = difflib.get_close_matches(model_type, [name for name in known if name != model_type], n=3)
    if close:
        hints.append(f"Did you mean {' or '.join(map(repr, close))}?")
    if not any(is_own(claim) for claim in found):
        hints.append(
            f"The built-in plugins are not there: the package {DISTRIBUTION} is not installed (pip install -e .)."
        )
    hints.append(
        f"Install a plugin for it (pip install {DISTRIBUTION}-{normalise(model_type)}, if someone published one), or "
        f"write one: {DISTRIBUTION} new {shlex.quote(model_type)}"
    )
    raise UnknownModelTypeError(
        f"no installed plugin loads model_type {model_type!r}",
        found=f"plugins for {', '.join(known)}" if known else "no plugin at all",
        hint="\n  ".join(hints),
    )
