"""The versions of ``core`` and of what plugins are written against."""

__version__ = "0.1.0"
PLUGIN_API = "0.1"
"""CONTRIBUTING.md says what may change in it, and when."""
