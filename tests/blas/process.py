"""What the code in a process of its own begins with: a product whose result is known, and what is in use there."""

from __future__ import annotations

import pytest

from core import blas
from core.blas.library import packaged

LIBRARY = packaged()
needs_library = [
    pytest.mark.skipif(blas.status() is None, reason="MLX does not compute on a CPU of Linux"),
    pytest.mark.skipif(LIBRARY is None, reason="scipy-openblas32 is not installed"),
]
PRODUCT = """
def product():
    import mlx.core as mx
    a = mx.arange(40 * 300, dtype=mx.float32).reshape(40, 300) % 7
    b = mx.arange(300 * 50, dtype=mx.float32).reshape(300, 50) % 5
    return mx.matmul(a, b, stream=mx.cpu).tolist() == [
        [sum((i * 300 + k) % 7 * ((k * 50 + j) % 5) for k in range(300)) for j in range(50)] for i in range(40)
    ]
def status():
    from core import blas
    found = blas.status()
    return None if found is None else [found.used, str(found)]
def mapped(name):
    return name in open("/proc/self/maps").read()
"""
