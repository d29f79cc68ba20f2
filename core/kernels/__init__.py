"""Kernels: one object each, a reference in plain MLX and fused sources that must agree with it before they are used."""

from __future__ import annotations

import core.needs_mlx  # noqa: F401
from core.kernels.check import KernelCase, KernelReport, check_kernel
from core.kernels.compare import Tolerance
from core.kernels.device import inference, reference_only
from core.kernels.fused import KernelWarning, Launch
from core.kernels.kernel import Kernel
from core.kernels.registry import registered_kernels
from core.kernels.swiglu import swiglu, swiglu_pair

__all__ = [
    "Kernel",
    "KernelCase",
    "KernelReport",
    "KernelWarning",
    "Launch",
    "Tolerance",
    "check_kernel",
    "inference",
    "reference_only",
    "registered_kernels",
    "swiglu",
    "swiglu_pair",
]
