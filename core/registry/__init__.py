"""Who loads which ``model_type``: claims, precedence, and a plugin bound for one load.

Discovery reads package metadata only. A plugin is imported when a load has chosen it, and from then on it alone answers.
"""

from core.registry.bind import BoundPlugin, bind
from core.registry.claims import Claim, claims, register, unregister
from core.registry.choose import choose, status

__all__ = ["BoundPlugin", "Claim", "bind", "choose", "claims", "register", "status", "unregister"]
