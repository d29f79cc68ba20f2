"""Writes a package for a new architecture: a built-in plugin under another name, with its tests and its packaging."""

from core.scaffold.names import Names
from core.scaffold.package import package_files, write_package
from core.scaffold.source import LIKE

__all__ = ["LIKE", "Names", "package_files", "write_package"]
