"""Who loads which ``model_type``: claims, precedence, and a plugin bound for one load.

Discovery reads package metadata only. A plugin is imported when a load has chosen it, and then it alone answers.
"""

from core.registry.bind import BoundPlugin, bind, delegate
from core.registry.choose import choose, status
from core.registry.claim import Claim, register, unregister
from core.registry.discovery import claims

__all__ = ["BoundPlugin", "Claim", "bind", "choose", "claims", "delegate", "register", "status", "unregister"]
