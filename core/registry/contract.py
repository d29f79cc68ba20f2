"""Checks a plugin's hooks against the contract before it is bound, so that a misspelt or unmarked hook is an error.

pluggy itself ignores a function that is not marked, and a hook that is not specified.
"""

from __future__ import annotations

import difflib
import inspect
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from core import hookspecs
from core.errors import PluginError
from core.registry.claim import Claim

REQUIRED = ("parse_config", "weight_map", "build_block")
HOOKS = tuple(
    name
    for name, value in vars(hookspecs).items()
    if inspect.isfunction(value) and value.__module__ == hookspecs.__name__
)
_MARK = f"{hookspecs.PROJECT}_impl"


def check(claim: Claim, plugin: Any) -> None:
    """Raises:
    PluginError: the plugin is a class; a hook is misspelt or not marked; a required one is missing.
    """
    if inspect.isclass(plugin):
        raise PluginError(f"plugin {claim} is a class", hint=f"Give an instance: {plugin.__name__}().")
    marked, implemented, unmarked = set(), set(), []
    for name, function in _functions(plugin):
        mark = getattr(function, _MARK, None)
        if isinstance(mark, dict):
            hook = mark.get("specname") or name
            # An optional hook may belong to another version of core, and its author marked it so.
            if not mark.get("optionalhook"):
                marked.add(hook)
            if not mark.get("wrapper") and not mark.get("hookwrapper"):
                implemented.add(hook)
        elif name in HOOKS and _defined_by(plugin, function):
            unmarked.append(name)
    _refuse_unknown(claim, marked - set(HOOKS))
    forgotten = [name for name in unmarked if name not in marked]
    if forgotten:
        raise PluginError(
            f"plugin {claim} defines {', '.join(forgotten)} without marking it as a hook",
            hint="Put @core.hookimpl above it, or give it another name.",
        )
    missing = [name for name in REQUIRED if name not in implemented]
    if missing:
        raise PluginError(
            f"plugin {claim} lacks the required hook{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            found=", ".join(sorted(marked)) or "no function marked with @core.hookimpl",
        )


def warn_of_deprecated(claim: Claim, plugin: Any) -> None:
    """Gives one ``FutureWarning``, at the plugin's own line, for each hook or argument it implements that will be
    removed."""
    for name, function in _functions(plugin) if hookspecs.DEPRECATED else ():
        mark = getattr(function, _MARK, None)
        if not isinstance(mark, dict):
            continue
        hook = mark.get("specname") or name
        used = {hook: f"the hook {hook}"}
        used |= {f"{hook}.{argument}": f"{argument!r} of {hook}" for argument in inspect.signature(function).parameters}
        code = getattr(inspect.unwrap(function), "__code__", None)
        for key in sorted(used.keys() & hookspecs.DEPRECATED.keys()):
            warnings.warn_explicit(
                f"plugin {claim} implements {used[key]}, which is deprecated: {hookspecs.DEPRECATED[key]}",
                FutureWarning,
                code.co_filename if code else "<plugin>",
                code.co_firstlineno if code else 0,
            )


def _functions(plugin: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in dir(plugin):
        if not name.startswith("__"):
            value = getattr(plugin, name, None)
            if inspect.isroutine(value):
                yield name, value


def _defined_by(plugin: Any, function: Callable[..., Any]) -> bool:
    """Whether the plugin's own package defines the function. An imported one is not an unmarked hook."""
    home = plugin.__name__ if isinstance(plugin, types.ModuleType) else type(plugin).__module__
    return _package(getattr(function, "__module__", None) or "") == _package(home)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _refuse_unknown(claim: Claim, names: set[str]) -> None:
    for name in sorted(names):
        close = difflib.get_close_matches(name, HOOKS, n=1)
        raise PluginError(
            f"plugin {claim} marks {name!r} as a hook, and there is no such hook",
            expected=", ".join(HOOKS),
            hint=f"Did you mean {close[0]!r}?" if close else None,
        )
