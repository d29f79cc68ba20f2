"""Compares arrays, and reports a difference with its likely cause."""

from __future__ import annotations

import math

import mlx.core as mx


def number(array: mx.array) -> float:
    """The value of a scalar array."""
    value = array.item()
    assert isinstance(value, bool | int | float)
    return float(value)


def scale_of(expected: mx.array) -> float:
    """The largest magnitude of an array; 1 if it is empty or all zero."""
    largest = number(mx.max(mx.abs(expected.astype(mx.float32)))) if expected.size else 0.0
    return largest or 1.0


def difference(actual: mx.array, expected: mx.array) -> float:
    """The largest difference, in units of the largest magnitude of ``expected``; infinite for NaN or another shape."""
    if actual.shape != expected.shape:
        return math.inf
    if not actual.size:
        return 0.0
    wide, theirs = actual.astype(mx.float32), expected.astype(mx.float32)
    error = number(mx.max(mx.abs(wide - theirs))) / scale_of(theirs)
    # MLX's maximum may ignore NaN.
    return error if bool(mx.all(mx.isfinite(wide)).item()) and math.isfinite(error) else math.inf


def demand(condition: object, message: str) -> None:
    """Fails the check unless ``condition`` holds. The message says what is wrong, and what to look at."""
    if not condition:
        raise AssertionError(message)


def demand_close(actual: mx.array, expected: mx.array, tolerance: float, message: str) -> None:
    """Fails the check if two arrays differ by more than ``tolerance`` times the largest expected magnitude."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{message}\n  shapes differ: {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    found = difference(actual, expected)
    if not found <= tolerance:
        raise AssertionError(
            f"{message}\n  largest difference {found:.2e} of the largest value, at most {tolerance:.0e} allowed"
        )
