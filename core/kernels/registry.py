"""Every kernel of the process, by name."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING

from core.errors import PluginError

if TYPE_CHECKING:
    from core.kernels.kernel import Kernel


@dataclass(frozen=True)
class Origin:
    """Where a kernel was constructed: the module, the scope in it, and the very code that ran."""

    module: str
    scope: str
    code: CodeType

    @classmethod
    def of_caller(cls, depth: int) -> Origin:
        """The origin ``depth`` frames above the caller."""
        frame = sys._getframe(depth + 1)
        return cls(frame.f_globals.get("__name__", "?"), frame.f_code.co_qualname, frame.f_code)

    def reran(self, other: Origin) -> bool:
        """Whether both are one definition, executed anew: a module reloaded, or imported again after its removal."""
        return (self.module, self.scope) == (other.module, other.scope) and self.code is not other.code


_kernels: dict[str, Kernel] = {}


def register(kernel: Kernel) -> None:
    """Enters a kernel under its name.

    Raises:
        PluginError: another definition holds the name.
    """
    known = _kernels.get(kernel.name)
    if known is not None and not kernel.origin.reran(known.origin):
        raise PluginError(
            f"modules {known.origin.module} and {kernel.origin.module} both define a kernel {kernel.name!r}",
            where=kernel.origin.module,
            hint=f"give it a name of its own, such as '{kernel.origin.module.rpartition('.')[2]}.{kernel.name}'",
        )
    _kernels[kernel.name] = kernel


def registered_kernels() -> dict[str, Kernel]:
    """All kernels constructed so far in this process, by name, in the order of their names."""
    return dict(sorted(_kernels.items()))
