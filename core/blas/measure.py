"""Products through MLX itself: whether they are right with the library that was bound, and how fast they are."""

from __future__ import annotations

import time

import mlx.core as mx

from core.blas.product import expected, left, right

_SIZE = 512
_SECONDS = 0.1


def is_right() -> bool:
    """Whether MLX multiplies a small product right on the CPU, in float32 and complex64."""
    for dtype in (mx.float32, mx.complex64):
        a, b = (mx.array(matrix, dtype) for matrix in (left(), right()))
        if mx.matmul(a, b, stream=mx.cpu).tolist() != expected():
            return False
    return True


def gigaflops() -> float:
    """Billions of floating-point operations a second that MLX computes on the CPU in a product of two matrices of
    512 × 512 numbers in float32: the best of those that 0.1 seconds are enough for, or of one.
    """
    a, b = (mx.full((_SIZE, _SIZE), value, mx.float32) for value in (0.5, 2.0))
    mx.eval(a, b, mx.matmul(a[:8, :8], b[:8, :8], stream=mx.cpu))
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while True:
        started = time.perf_counter()
        mx.eval(mx.matmul(a, b, stream=mx.cpu))
        now = time.perf_counter()
        best = min(best, now - started)
        if now >= end:
            return 2 * _SIZE**3 / best / 1e9
