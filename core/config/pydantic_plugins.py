"""Loads pydantic's own plugins, so that a broken package in the environment does not stop every load.

When a process defines its first pydantic model, pydantic reads the metadata of every installed package to find its
plugins. If one of these files cannot be read, pydantic raises an error, whichever package it belongs to.
"""

from __future__ import annotations

import warnings
from importlib import metadata

from pydantic import create_model


def load_pydantic_plugins() -> None:
    """Defines a first model. If that fails, warns; pydantic then continues with the plugins that it has loaded so far.

    pydantic looks for plugins once in a process, so the next model can be defined even if the first one failed.
    """
    try:
        create_model("First")
    except Exception as error:  # neither importlib.metadata nor pydantic has an error of its own for this
        damaged = _unreadable()
        which = f"the metadata of {', '.join(damaged)} cannot be read" if damaged else "one of them fails"
        warnings.warn(
            f"pydantic cannot load its plugins, because {which} ({type(error).__name__}: {error}); "
            "models load all the same. Repair or uninstall that package.",
            stacklevel=2,
        )


def _unreadable() -> list[str]:
    """The directories of installed packages whose entry points cannot be read."""
    found = []
    for distribution in metadata.distributions():
        try:
            distribution.entry_points  # noqa: B018
        except Exception:
            found.append(str(getattr(distribution, "_path", distribution)))
    return found
