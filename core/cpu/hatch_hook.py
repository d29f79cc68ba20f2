"""What hatchling runs when a wheel is built: compiles the CPU library, and gives the wheel the tag that fits it.

A wheel without libraries is a pure one, for every machine. One with libraries is for one kind of machine. Its tag is
``manylinux_2_N``, where N comes from the versions of glibc's symbols that the libraries use: they need nothing beside
glibc, so this is all that auditwheel could find out, and nothing has to be copied into the wheel. Where they need
anything else, for instance another C library, the tag is ``linux``, which no index takes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CpuLibraryHook(BuildHookInterface[Any]):
    """Compiles into the project's own folder; an editable installation uses the libraries from there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles, and adds the libraries and the tag to a wheel that is not editable."""
        sys.path.insert(0, self.root)
        try:
            from core.cpu.build import build
            from core.cpu.wheel_tag import platform_tag
        finally:
            sys.path.remove(self.root)
        source = Path(self.root, "core", "cpu")
        built = build(source / "lib", source=source / "source")
        for note in built.notes:
            self.app.display_info(f"CPU library: {note}")
        if built.machine is None:
            self.app.display_warning("CPU library: not built. Everything works without it, and slower on a CPU.")
        elif version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag(built.libraries, built.machine)}"
            build_data["force_include"] |= {str(path): f"core/cpu/lib/{path.name}" for path in built.libraries}
