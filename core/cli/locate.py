"""Where a plugin's module lies, found without importing it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from core.registry import Claim, own
from core.registry.discovery import is_own


def locate(claim: Claim) -> Path | None:
    """The file that importing a claim's plugin would run; None where there is none."""
    if claim.plugin is not None:
        home = claim.plugin if isinstance(claim.plugin, ModuleType) else sys.modules.get(type(claim.plugin).__module__)
        file = getattr(home, "__file__", None)
        return Path(file) if file else None
    try:
        module, _ = claim.target()
        return _file_of(module.split("."), own.DIRECTORY if is_own(claim) else None)
    except (ImportError, ValueError):
        return None


def _file_of(path: list[str], namespace: Path | None) -> Path | None:
    top, *rest = path
    if namespace is not None and top == own.NAMESPACE:
        places = [namespace]  # whatever else is called ``plugins`` on the path
    else:
        spec = importlib.util.find_spec(top)  # of a top-level name: for a dotted one, this would import its parents
        if spec is None:
            return None
        if not rest:
            return Path(spec.origin) if spec.has_location and spec.origin else None
        places = [Path(place) for place in spec.submodule_search_locations or ()]
    below = [place.joinpath(*rest) for place in places]
    files = [file for each in below for file in (each / "__init__.py", each.with_name(f"{each.name}.py"))]
    return next((file for file in files if file.is_file()), None)
