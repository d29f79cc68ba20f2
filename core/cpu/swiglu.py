"""SwiGLU, computed at once by the CPU library."""

from __future__ import annotations

import ctypes

import mlx.core as mx

from core.cpu.arrays import address, floats
from core.cpu.calls import library


def swiglu(gate_up: mx.array) -> mx.array:
    """``silu(gate) * up`` of evaluated floats ``[..., 2 * hidden]``, gate first; ``[..., hidden]`` in their dtype."""
    hidden = gate_up.shape[-1] // 2
    wide, y = floats(gate_up, (*gate_up.shape[:-1], hidden))
    x, to = (ctypes.c_void_p(address(array)) for array in (wide, y))
    library().corelm_swiglu(x, ctypes.c_int64(y.size // hidden), ctypes.c_int64(hidden), to)
    return y if gate_up.dtype == mx.float32 else y.astype(gate_up.dtype)
