"""What MLX makes of a custom CUDA kernel: its text, the name of its code, and a shorter text with the same meaning.

MLX puts a header before each kernel that takes NVRTC more than a second and adds 200 KB of code. Few kernels need
anything of it; ``Instance.text`` declares what they do need, and compiles in a tenth of the time.

Source: ``mlx/backend/cuda/custom_kernel.cpp`` and ``jit_module.cpp`` of MLX 0.32.4. Where another MLX does this
otherwise, it does not find the code that is kept for it, and compiles the kernel itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mlx.core as mx

from core.kernels.source_files import source_text

NAMESPACE = "mlx::core::cu"
MLX_VERSION: str = getattr(mx, "__version__")  # noqa: B009 - MLX's stubs do not declare it

CUDA_TYPES = {
    mx.bool_: "bool",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.float16: "__half",
    mx.bfloat16: "__nv_bfloat16",
    mx.float32: "float",
}
"""How MLX spells the dtypes of inputs and outputs."""
_NAMES = {**CUDA_TYPES, mx.float16: "float16_t", mx.bfloat16: "bfloat16_t"}  # in the names of kernels

_MLX_HEADER = """
#include "mlx/backend/cuda/device/utils.cuh"

#include <cooperative_groups.h>

"""

_OWN_HEADER = source_text(Path(__file__).parent / "own_header.cuh")


@dataclass(frozen=True)
class Instance:
    """One kernel as it is compiled: for one template, and inputs and outputs of given dtypes.

    Args:
        name, input_names, output_names, source, header: as ``mx.fast.cuda_kernel`` takes them.
        inputs: dtype of each input, and whether it has any axis.
        outputs: dtype of each output.
        template: as the kernel is called with.
    """

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str
    inputs: tuple[tuple[mx.Dtype, bool], ...]
    outputs: tuple[mx.Dtype, ...]
    template: tuple[tuple[str, bool | int | mx.Dtype], ...] = ()

    @property
    def known(self) -> bool:
        """Whether every dtype is one that this module can spell."""
        dtypes = [dtype for dtype, _ in self.inputs] + list(self.outputs)
        dtypes += [value for _, value in self.template if isinstance(value, mx.Dtype)]
        return all(dtype in CUDA_TYPES for dtype in dtypes)

    @cached_property
    def function(self) -> str:
        """The kernel's name without its namespace."""
        return f"custom_kernel_{self.name}" + "".join(_suffix(value) for _, value in self.template)

    @property
    def qualified(self) -> str:
        """The kernel's name with its namespace."""
        return f"{NAMESPACE}::{self.function}"

    @cached_property
    def module(self) -> str:
        """Under which MLX keeps the kernel's code: its name, and a hash of MLX's text."""
        return f"{self.function}_{std_hash(self._written(_MLX_HEADER).encode()):x}"

    @property
    def text(self) -> str:
        """A program with the same kernel, without MLX's header."""
        cooperative = "cg::" in self.header + self.source or "cooperative_groups" in self.header + self.source
        more = "#include <cooperative_groups.h>\n" if cooperative else "namespace cooperative_groups {}\n"
        return self._written(_OWN_HEADER + more)

    def _written(self, first: str) -> str:
        # Most sources use none of these; a decode step has hundreds of inputs to look for.
        endings = [
            (e, d) for e, d in (("_shape", "Shape"), ("_strides", "Strides"), ("_ndim", "int")) if e in self.source
        ]
        parameters = []
        for name, (dtype, has_axes) in zip(self.input_names, self.inputs, strict=True):
            parameters.append(f"    const {CUDA_TYPES[dtype]}* {name}")
            for ending, declared in endings:
                if has_axes and name + ending in self.source:
                    parameters.append(f"    const __grid_constant__ {declared} {name}{ending}")
        for name, dtype in zip(self.output_names, self.outputs, strict=True):
            parameters.append(f"    {CUDA_TYPES[dtype]}* {name}")
        constants = "".join(map(_constant, self.template))
        return (
            f"{first}{self.header}namespace {NAMESPACE} {{\n\nnamespace cg = cooperative_groups;\n\n"
            f"__global__ void {self.function}(\n" + ",\n".join(parameters) + ") {\n" + constants
            + ("\n" if constants else "") + f"{self.source}\n}}\n\n}} // namespace {NAMESPACE}\n"
        )  # fmt: skip


def std_hash(data: bytes) -> int:
    """``std::hash<std::string>`` of GNU's C++ library on 64-bit machines: MurmurHash64A by Austin Appleby."""
    multiplier, mask = 0xC6A4A7935BD1E995, 0xFFFFFFFFFFFFFFFF
    whole = len(data) & ~7
    state = (0xC70F6907 ^ len(data) * multiplier) & mask
    for at in range(0, whole, 8):
        word = int.from_bytes(data[at : at + 8], "little") * multiplier & mask
        word = (word ^ word >> 47) * multiplier & mask
        state = (state ^ word) * multiplier & mask
    if len(data) > whole:
        state = (state ^ int.from_bytes(data[whole:], "little")) * multiplier & mask
    state = (state ^ state >> 47) * multiplier & mask
    return state ^ state >> 47


def _suffix(value: bool | int | mx.Dtype) -> str:
    if isinstance(value, mx.Dtype):
        return f"_{_NAMES[value]}"
    return ("_t" if value else "_f") if isinstance(value, bool) else f"_{value}"


def _constant(item: tuple[str, bool | int | mx.Dtype]) -> str:
    name, value = item
    if isinstance(value, mx.Dtype):
        return f"  using {name} = {CUDA_TYPES[value]};\n"
    kind = "bool" if isinstance(value, bool) else "int"
    return f"  constexpr {kind} {name} = {str(value).lower()};\n"
