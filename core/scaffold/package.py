"""Makes the files of a new package, and writes all of them or none."""

from __future__ import annotations

import shutil
import tempfile
from datetime import date
from pathlib import Path
from string import Template

from core.errors import SaveError, UsageError
from core.registry import claims
from core.scaffold.names import Names, requirement
from core.scaffold.source import plugin_modules
from core.version import __version__

_TEMPLATES = Path(__file__).parent / "templates"


def package_files(names: Names, like: str) -> dict[str, str]:
    """Path within the package's directory → text."""
    values = {
        "distribution": names.distribution,
        "module": names.module,
        "model_type": names.model_type,
        "entry_point": names.entry_point,
        "prefix": names.prefix,
        "title": names.title,
        "like": like,
        "requirement": requirement(__version__),
        "year": str(date.today().year),
    }

    def filled(template: str) -> str:
        return Template(_read(template)).substitute(values)

    modules = plugin_modules(names, like, _read(f"{like}/weights.py.in"))
    return {
        "pyproject.toml": filled("pyproject.toml.in"),
        "README.md": filled("README.md.in"),
        "LICENSE": filled("LICENSE.in"),
        ".gitignore": filled("gitignore.in"),
        ".github/workflows/test.yml": filled("test.yml.in"),
        **{f"{names.module}/{name}": source for name, source in modules.items()},
        f"tests/test_{names.module.partition('_')[2]}.py": filled("test_plugin.py.in"),
        "tests/config.json": filled(f"{like}/config.json.in"),
    }


def write_package(names: Names, like: str, parent: Path) -> Path:
    """Writes a package into a new directory of ``parent``, and returns the directory.

    Raises:
        UsageError: the type is built in, so a plugin for it would never be used.
        SaveError: the directory exists already, or its parent does not.
    """
    if any(claim.tier == "builtin" and claim.model_type == names.model_type for claim in claims()):
        raise UsageError(f"model_type {names.model_type!r} is built in, and that plugin would come before this one")
    place = parent / names.distribution
    if not parent.is_dir():
        raise SaveError("there is no such directory", where=parent)
    if place.exists() or place.is_symlink():
        raise SaveError("it is there already", where=place, hint="Move it away, or choose another place with --dir.")
    files = package_files(names, like)
    partial = Path(tempfile.mkdtemp(prefix=f".{names.distribution}-", dir=parent))
    try:
        for path, text in files.items():
            file = partial / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp makes it private; other directories are not
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return place


def _read(template: str) -> str:
    return (_TEMPLATES / template).read_text(encoding="utf-8")
