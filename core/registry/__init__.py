"""Chooses the plugin for a ``model_type``: claims, precedence, and a plugin bound for one load.

Discovery reads package metadata only. A plugin is imported when a load has chosen it. Only that plugin's hooks are
called for the load.
"""

from typing import TYPE_CHECKING, Any

from core.registry.choose import choose, status
from core.registry.claim import Claim, register, unregister
from core.registry.discovery import claims

if TYPE_CHECKING:
    from core.registry.binding import BoundPlugin, bind, delegate

__all__ = ["BoundPlugin", "Claim", "bind", "choose", "claims", "delegate", "register", "status", "unregister"]


def __getattr__(name: str) -> Any:
    # Binding imports MLX; claims do not, so they can be listed where MLX cannot be imported.
    if name not in ("BoundPlugin", "bind", "delegate"):
        raise AttributeError(f"module 'core.registry' has no attribute {name!r}")
    from core.registry import binding

    return globals().setdefault(name, getattr(binding, name))
