"""Compiled code of CUDA kernels: made once with NVRTC, kept on disk, and given to MLX before it would compile."""

from core.kernels.cuda_code.compiler import Compiler, device_compiler
from core.kernels.cuda_code.mlx_text import CUDA_TYPES, Instance
from core.kernels.cuda_code.store import digest

__all__ = ["CUDA_TYPES", "Compiler", "Instance", "device_compiler", "digest"]
