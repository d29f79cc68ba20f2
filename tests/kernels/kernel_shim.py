"""Runs elementwise Metal and CUDA bodies on the CPU, and assembles CUDA kernels as MLX does.

Knows how MLX wraps a body into a kernel function; knows no formula.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from core.kernels import Kernel

SHIM = Path(__file__).parent / "shim"
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
_SHIM_TYPES = {mx.float32: "float", mx.float16: "float16_t", mx.bfloat16: "bfloat16_t"}
_CUDA_TYPES = {mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16"}
_GUARD = 16384  # bytes around every buffer: more than one block of threads can overrun


def find_compiler() -> str | None:
    return next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)


def to_numpy(x: mx.array) -> np.ndarray:
    """The bits of halves, the numbers of float32."""
    return np.array(x if x.dtype == mx.float32 else x.view(mx.uint16))


def to_float64(x: mx.array) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.array(x.astype(mx.float32)).astype(np.float64)


def templates(kernel: Kernel) -> list[tuple[mx.Dtype, tuple[tuple[str, Any], ...]]]:
    """Every template that the kernel's samples use, once, with its dtype."""
    found = {}
    for dtype in DTYPES:
        for sample in kernel.sample_inputs(mx.random.key(0), dtype):
            found[kernel.launch(*sample).template] = dtype
    return [(dtype, template) for template, dtype in found.items()]


def symbol(kernel: Kernel, template: Iterable[tuple[str, Any]]) -> str:
    values = [str(value).rpartition(".")[2] for _, value in template]
    return "_".join(["kernel", kernel.name, *values])


class ShimLibrary:
    """Bodies of one language, compiled as C++ for all their templates."""

    def __init__(self, kernels: Iterable[Kernel], language: str, compiler: str, folder: Path) -> None:
        self.language = language
        source = [f'#include "{language}_shim.h"']
        for kernel in kernels:
            source += [_cpp_function(kernel, language, dtype, template) for dtype, template in templates(kernel)]
        path, library = folder / f"{language}.cpp", folder / f"{language}.so"
        path.write_text("\n".join(source))
        command = [
            compiler,
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
        ]
        subprocess.run([*command, f"-I{SHIM}", str(path), "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))

    def run(self, kernel: Kernel, *inputs: mx.array, misalign: int = 0) -> mx.array:
        """Runs a body on evaluated inputs, which start ``misalign`` elements off an aligned address."""
        launch = kernel.launch(*inputs)
        arguments: list[Any] = []
        buffers = []
        for name, x in zip(kernel.input_names, inputs, strict=True):
            values = to_numpy(x)
            raw, start = _aligned(values.nbytes + misalign * values.itemsize + _GUARD)
            at = start + misalign * values.itemsize
            raw[at : at + values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            buffers.append(raw)
            arguments.append(ctypes.c_void_p(raw.ctypes.data + at))
            if f"{name}_shape" in _body(kernel, self.language):
                arguments.append((ctypes.c_int * x.ndim)(*x.shape))
            if f"{name}_ndim" in _body(kernel, self.language):
                arguments.append(ctypes.c_int(x.ndim))
        size = int(np.prod(launch.output_shape)) * launch.output_dtype.size
        raw, start = _aligned(size + 2 * _GUARD)
        raw[:] = 0xA5
        at = start + _GUARD
        getattr(self._library, symbol(kernel, launch.template))(
            *arguments,
            ctypes.c_void_p(raw.ctypes.data + at),
            ctypes.c_uint(launch.grid[0]),
            ctypes.c_uint(launch.threadgroup[0]),
        )
        assert (raw[:at] == 0xA5).all(), "wrote before its output"
        assert (raw[at + size :] == 0xA5).all(), "wrote past its output"
        kind = np.float32 if launch.output_dtype == mx.float32 else np.uint16
        result = mx.array(raw[at : at + size].view(kind).reshape(launch.output_shape))
        return result if launch.output_dtype == mx.float32 else result.view(launch.output_dtype)


def _aligned(size: int) -> tuple[np.ndarray, int]:
    """A byte buffer, and the index of its first byte on a 64-byte boundary."""
    raw = np.zeros(size + 64, np.uint8)
    return raw, -raw.ctypes.data % 64


def _body(kernel: Kernel, language: str) -> str:
    body = kernel.metal if language == "metal" else kernel.cuda
    assert body is not None
    return body


def _cpp_function(kernel: Kernel, language: str, dtype: mx.Dtype, template: Iterable[tuple[str, Any]]) -> str:
    body, name = _body(kernel, language), symbol(kernel, template)
    parameters, passed = [], []
    for argument in kernel.input_names:
        parameters.append(f"const {_SHIM_TYPES[dtype]}* {argument}")
        passed.append(argument)
        for suffix, kind in (("shape", "const int*"), ("ndim", "int")):
            if f"{argument}_{suffix}" in body:
                parameters.append(f"{kind} {argument}_{suffix}")
                passed.append(f"{argument}_{suffix}")
    parameters.append(f"{_SHIM_TYPES[dtype]}* out")
    passed.append("out")
    position, given = (
        (", uint3 thread_position_in_grid", ", thread_position_in_grid") if language == "metal" else ("", "")
    )
    return (
        f"static void {name}_body({', '.join(parameters)}{position}) {{\n{_constants(template, _SHIM_TYPES)}{body}}}\n"
        f'extern "C" void {name}({", ".join(parameters)}, unsigned count, unsigned threads) {{\n'
        f"LAUNCH(count, threads, {name}_body({', '.join(passed)}{given}))\n}}\n"
    )


def _constants(template: Iterable[tuple[str, Any]], types: dict[mx.Dtype, str]) -> str:
    return "".join(
        f"  using {name} = {types[value]};\n"
        if isinstance(value, mx.Dtype)
        else f"  constexpr {type(value).__name__} {name} = {str(value).lower()};\n"
        for name, value in template
    )


def mlx_cuda_source(kernels: Iterable[Kernel]) -> str:
    """All CUDA kernels, wrapped as MLX wraps them (``build_kernel`` in its mlx/backend/cuda/custom_kernel.cpp)."""
    source = ['#include "mlx/backend/cuda/device/utils.cuh"\n\n#include <cooperative_groups.h>\n']
    for kernel in kernels:
        body = _body(kernel, "cuda")
        for dtype, template in templates(kernel):
            parameters = []
            for name in kernel.input_names:
                parameters.append(f"    const {_CUDA_TYPES[dtype]}* {name}")
                for suffix, kind in (("shape", "Shape"), ("strides", "Strides"), ("ndim", "int")):
                    if f"{name}_{suffix}" in body:
                        parameters.append(f"    const __grid_constant__ {kind} {name}_{suffix}")
            parameters.append(f"    {_CUDA_TYPES[dtype]}* out")
            source.append(
                "namespace mlx::core::cu {\n\nnamespace cg = cooperative_groups;\n\n"
                f"__global__ void {symbol(kernel, template)}(\n" + ",\n".join(parameters) + ") {\n"
                f"{_constants(template, _CUDA_TYPES)}\n{body}\n}}\n\n}} // namespace mlx::core::cu\n"
            )
    return "\n".join(source)
