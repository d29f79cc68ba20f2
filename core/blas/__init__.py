"""A fast library of matrix products under MLX, where MLX's own is slow: on the CPU of a Linux machine.

It is bound when core first imports MLX. ``CORE_BLAS=off`` leaves MLX as it is, and a path takes another library.
"""

from core.blas.binding import VARIABLE, bind, check, check_setting, status
from core.blas.status import Status

__all__ = ["Status", "VARIABLE", "bind", "check", "check_setting", "status"]
