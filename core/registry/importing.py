"""Imports the plugin of a claim. Any failure becomes an error that names the package."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from core.errors import PluginError
from core.registry import own
from core.registry.claim import Claim
from core.registry.discovery import is_own
from core.registry.requirement import DISTRIBUTION


def import_claim(claim: Claim) -> Any:
    """The module or object of a claim.

    Raises:
        PluginError: importing failed in whatever way; the original error is the cause.
    """
    if claim.plugin is not None:
        return claim.plugin
    try:
        module, path = claim.target()
        plugin = importlib.import_module(_reachable_name(module) if is_own(claim) else module)
        for name in path.split(".") if path else ():
            plugin = getattr(plugin, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything, also SystemExit
        raise PluginError(
            f"plugin {claim} cannot be imported: {brief(error)}", where=_location(error), hint=_hint(claim)
        ) from error
    return plugin


def brief(error: BaseException) -> str:
    """An error's type and first line; the rest is in the chained traceback."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # printing an error may itself fail
        lines = []
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _reachable_name(name: str) -> str:
    """The name under which one of this distribution's own plugins can be imported, without running foreign code."""
    namespace, _, rest = name.partition(".")
    if namespace != own.NAMESPACE or _leads_to(own.DIRECTORY, name):
        return name
    return f"{own.__name__}.{rest}"


def _leads_to(directory: Path, name: str) -> bool:
    """Whether importing ``name`` gives the plugin in ``directory``; finds out without running code."""
    namespace, _, rest = name.partition(".")
    try:
        spec = importlib.util.find_spec(namespace)
        if spec is None or spec.origin is not None:  # a package or module: looking for its children would run it
            return False
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is None:
        return False
    return Path(spec.origin).resolve().parent == directory.joinpath(*rest.split("."))


def _location(error: BaseException) -> str | None:
    """The file of a syntax error; other errors carry their traceback."""
    return f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) and error.filename else None


def _hint(claim: Claim) -> str:
    if claim.tier in ("explicit", "registered"):
        return "A plugin is a module, an object, an installed distribution's name, or a module's dotted path."
    if is_own(claim):
        return f"The installation is damaged: pip install --force-reinstall {DISTRIBUTION}"
    return "Repair or uninstall it; other model types are not affected."
