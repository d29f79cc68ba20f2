"""Real distributions, written as wheels with no build tool: what ``pip install`` would put on the path."""

from __future__ import annotations

import textwrap
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ARCHITECTURES = "core.architectures"
FALLBACKS = "core.fallbacks"


@dataclass(frozen=True)
class Distribution:
    """One package.

    Attributes:
        modules: file → source.
        claims: ``model_type`` → value, in the group ``core.architectures``; fallbacks: the same in ``core.fallbacks``.
        requires: lines of ``Requires-Dist``.
        entry_points: further lines of ``entry_points.txt``, as they are.
    """

    name: str
    version: str = "1.0"
    modules: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, str] = field(default_factory=dict)
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    requires: Sequence[str] = ()
    entry_points: str = ""

    def wheel(self, directory: Path) -> Path:
        """Writes the wheel and returns its path."""
        stem = f"{self.name.replace('-', '_')}-{self.version}"
        info = f"{stem}.dist-info"
        files = {path: textwrap.dedent(source) for path, source in self.modules.items()}
        files[f"{info}/METADATA"] = "\n".join(
            ["Metadata-Version: 2.1", f"Name: {self.name}", f"Version: {self.version}"]
            + [f"Requires-Dist: {line}" for line in self.requires]
        )
        files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        groups = {ARCHITECTURES: self.claims, FALLBACKS: self.fallbacks}
        files[f"{info}/entry_points.txt"] = (
            "".join(
                f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
                for group, entries in groups.items()
                if entries
            )
            + self.entry_points
        )
        files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        path = directory / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path

    def install(self, site: Path) -> Path:
        """Unpacks the wheel into a directory that stands for site-packages, and returns it."""
        site.mkdir(parents=True, exist_ok=True)
        unpack(self.wheel(site), site)
        return site


def unpack(wheel: Path, site: Path) -> None:
    """What an installer does with a wheel whose files all belong in one directory."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
