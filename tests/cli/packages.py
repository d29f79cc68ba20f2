"""Installed packages that claim model types: real metadata in a directory, no installer."""

from __future__ import annotations

from pathlib import Path


def install(site: Path, name: str, claims: dict[str, str], files: dict[str, str], *, requires: str = "") -> Path:
    """Puts a distribution into ``site``: its claims (type → module), its files (path → source). Returns ``site``."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    (info / "METADATA").write_text(metadata + (f"Requires-Dist: {requires}\n" if requires else ""))
    entries = "".join(f"{model_type} = {module}\n" for model_type, module in claims.items())
    (info / "entry_points.txt").write_text(f"[core.architectures]\n{entries}")
    for path, source in files.items():
        file = site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return site


SOUND = """
from core import hookimpl
print("a plugin may print what it likes")

@hookimpl
def parse_config(config): ...

@hookimpl
def weight_map(config, layout): ...

@hookimpl
def build_block(config, index): ...
"""
