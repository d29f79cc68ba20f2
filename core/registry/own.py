"""This distribution's own plugins, under a name that nobody else can take.

``plugins`` is a namespace package, so that it breaks nobody else's; for the same reason any regular package or module
of that name hides it, from before it on the path or behind it. This module is a second way in: a package whose only
directory is the one beside ``core``, found by the ordinary import system, in this process or in one that unpickles.
"""

from __future__ import annotations

from pathlib import Path

NAMESPACE = "plugins"
DIRECTORY = Path(__file__).resolve().parents[2] / NAMESPACE

__path__ = [str(DIRECTORY)]
