"""The version of this package, for rooms below its face."""

__version__ = "0.1.0"
