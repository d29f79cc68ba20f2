"""The decode step as one kernel: a fast path for models made of ``core.nn``, derived from their modules.

Deleting this room leaves everything working, slower.
"""

from core.fast.entry import compile_step, device_reason, fast_step, reason
from core.fast.step import FastStep

__all__ = ["FastStep", "compile_step", "device_reason", "fast_step", "reason"]
