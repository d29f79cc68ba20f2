"""Importing a claim's module, and only that; whatever goes wrong becomes an error that names the package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import core
from core.errors import PluginError
from core.registry.claims import Claim

_lock = threading.RLock()


def import_claim(claim: Claim) -> Any:
    """The module or object behind a claim.

    Raises:
        PluginError: importing failed in whatever way; the original error is the cause.
    """
    if claim.plugin is not None:
        return claim.plugin
    module_name, _, attribute = claim.value.partition(":")
    try:
        if claim.tier in ("builtin", "bundled"):
            module = _import_own(module_name.strip(), claim)
        else:
            module = importlib.import_module(module_name.strip())
        for name in filter(None, attribute.strip().split(".")):
            module = getattr(module, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may fail with anything, SystemExit at import among it
        raise PluginError(
            f"plugin {claim} cannot be imported: {type(error).__name__}: {error}",
            where=_location(error),
            hint="Repair or uninstall it; other model types are not affected.",
        ) from error
    return module


def locate(claim: Claim) -> Path | None:
    """The file that importing a claim would run, found without importing anything; None where there is none."""
    if claim.plugin is not None:
        home = claim.plugin if isinstance(claim.plugin, ModuleType) else sys.modules.get(type(claim.plugin).__module__)
        file = getattr(home, "__file__", None)
        return Path(file) if file else None
    name = claim.value.partition(":")[0].strip()
    top, *rest = name.split(".")
    if claim.tier in ("builtin", "bundled"):
        roots = [_own_directory(name, claim)]
    else:
        try:
            spec = importlib.util.find_spec(top)  # of a top-level name, which imports nothing
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        if not rest:
            return Path(spec.origin) if spec.has_location and spec.origin else None
        roots = [Path(place, *rest) for place in spec.submodule_search_locations or ()]
    files = [file for root in roots for file in (root / "__init__.py", root.with_name(f"{root.name}.py"))]
    return next((file for file in files if file.is_file()), None)


def _import_own(name: str, claim: Claim) -> Any:
    """Imports one of this distribution's plugins even where a foreign ``plugins`` hides the namespace package.

    A namespace package loses to any regular package or module of its name on the path, before it or behind it. The
    plugin is then loaded from the distribution's own files, under a private name, and the foreign code never runs.
    """
    top, _, rest = name.partition(".")
    here = _own_directory(name, claim)
    spec = importlib.util.find_spec(top)
    visible = spec is not None and spec.origin is None and list(spec.submodule_search_locations or ())
    if visible and any(Path(path).resolve() == here.parent.resolve() for path in visible[:1]):
        return importlib.import_module(name)
    if visible and importlib.util.find_spec(name) is not None:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None and Path(found.origin).resolve().parent == here.resolve():
            return importlib.import_module(name)
    private = f"_corelm_{rest.replace('.', '_')}"
    with _lock:
        if private not in sys.modules:
            file = here / "__init__.py"
            private_spec = importlib.util.spec_from_file_location(private, file, submodule_search_locations=[str(here)])
            assert private_spec is not None
            assert private_spec.loader is not None
            module = importlib.util.module_from_spec(private_spec)
            sys.modules[private] = module
            try:
                private_spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[private]
                raise
    return sys.modules[private]


def _own_directory(name: str, claim: Claim) -> Path:
    """Where this distribution's plugin lies: among its recorded files, or beside ``core`` in an editable install."""
    relative = Path(*name.split("."))
    if claim.metadata is not None:
        recorded = Path(str(claim.metadata.locate_file(relative)))
        if (recorded / "__init__.py").is_file():
            return recorded
    assert core.__file__ is not None
    return Path(core.__file__).resolve().parent.parent / relative


def _location(error: BaseException) -> str | None:
    """The file of a syntax error; other errors carry their traceback."""
    return f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) and error.filename else None
