"""Imports this distribution's own plugins under a name that no other package can hide.

``plugins`` is a namespace package, so that other packages of that name still work. For the same reason, any regular
package or module named ``plugins`` hides it, wherever on the path it is. This module is a second way to import them: a
package whose only directory is the one beside ``core``. The ordinary import system finds it, in this process or in one
that unpickles.
"""

from __future__ import annotations

from pathlib import Path

NAMESPACE = "plugins"
DIRECTORY = Path(__file__).resolve().parents[2] / NAMESPACE

__path__ = [str(DIRECTORY)]
