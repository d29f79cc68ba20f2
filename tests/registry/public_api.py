"""What plugins may use, as data: public names, what can be passed to them, and the hooks' arguments.

    python -m tests.registry.public_api > tests/data/plugin_api.json

Knows signatures; that a name still does what it did is for the frozen plugin to show.
"""

from __future__ import annotations

import importlib
import inspect
import json
from typing import Any

import core
from core import hookspecs
from core.registry.contract import HOOKS

MODULES = (
    "core",
    "core.config",
    "core.nn",
    "core.weights",
    "core.kernels",
    "core.errors",
    "core.testing",
)
"""Those that a plugin may import."""

Surface = dict[str, str]


def public_names(module: str) -> list[str]:
    """What a module lists as public; of the errors, all."""
    public = importlib.import_module(module)
    return getattr(public, "__all__", None) or [name for name in vars(public) if name.endswith("Error")]


def surface() -> Surface:
    """Dotted name → parameters, with ``!`` behind one that has no default; of classes, their public methods as well."""
    found = {f"hook {hook}": _parameters(getattr(hookspecs, hook)) for hook in HOOKS}
    for module in MODULES:
        for name in public_names(module):
            value = getattr(importlib.import_module(module), name)
            found[f"{module}.{name}"] = _parameters(value)
            if inspect.isclass(value) and not issubclass(value, Exception):
                found |= _members(f"{module}.{name}", value)
    return dict(sorted(found.items()))


def _members(name: str, kind: type) -> Surface:
    ours = [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "core"]
    names = {member for base in ours for member in vars(base) if not member.startswith(("_", "test_"))}
    return {f"{name}.{member}": _parameters(getattr(kind, member)) for member in names}


def _parameters(value: Any) -> str:
    if not str(getattr(value, "__module__", None)).startswith("core"):
        return ""  # not ours to promise
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return ""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    demanded = {one.name for one in parameters if one.default is one.empty and one.kind not in variadic}
    return " ".join(f"{one.name}!" if one.name in demanded else one.name for one in parameters)


if __name__ == "__main__":
    print(json.dumps({"PLUGIN_API": core.PLUGIN_API, "surface": surface()}, indent=1))
