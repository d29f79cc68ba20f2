"""Limits how far the host runs ahead of the device, so that temporary arrays do not fill the memory.

MLX allocates a kernel's memory when the kernel is built, and frees it when the kernel is done. Without a limit, the
floats of many quantized matrices would be alive at once.
"""

from __future__ import annotations

from collections import deque

import mlx.core as mx

from core.device import backend
from core.kernels.few_rows import MOST_ROWS

_FROM = MOST_ROWS + 1
"""Tokens from which CUDA turns quantized matrices into floats, and a block takes longer than waiting for one."""
_AHEAD = 2  # blocks that may be in progress: enough that the device never waits


def begin(x: mx.array) -> bool:
    """Starts computing ``x`` on the device while the host continues; returns False while a transformation traces."""
    try:
        mx.async_eval(x)
    except (RuntimeError, ValueError):
        return False
    return True


class Pace:
    """Paces one pass over the blocks; does nothing where it is not needed, or where a transformation traces.

    Args:
        tokens: of the pass, all rows together.
    """

    def __init__(self, tokens: int) -> None:
        self._paces = tokens >= _FROM and backend() == "cuda"
        self._under_way: deque[mx.array] = deque()

    def after(self, x: mx.array) -> None:
        """Call it with each block's output."""
        self._paces = self._paces and begin(x)
        if self._paces:
            self._under_way.append(x)
            if len(self._under_way) > _AHEAD:
                mx.eval(self._under_way.popleft())
