"""CUDA text that depends on shapes: the constants before a file's text, and the declaration of what MLX will define."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def constants(namespace: str, values: Mapping[str, bool | int | float]) -> str:
    """Defines compile-time constants in a namespace."""
    lines = "".join(f"constexpr {_typed(name, value)};\n" for name, value in values.items())
    return f"namespace {namespace} {{\n{lines}}}\n"


def _typed(name: str, value: bool | int | float) -> str:
    if isinstance(value, bool):
        return f"bool {name} = {str(value).lower()}"
    return f"float {name} = {value!r}f" if isinstance(value, float) else f"int {name} = {value}"


def declaration(kernel: str, threads: int, blocks: int, parameters: Iterable[str]) -> str:
    """Declares the kernel that MLX will define, to say how many threads a block has: registers are shared out by that.

    Args:
        threads: of a block.
        blocks: that a multiprocessor is to run at a time.
        parameters: type and name of each, exactly as MLX will write them.
    """
    bounds = f"__launch_bounds__({threads}, {blocks})"
    return f"namespace mlx::core::cu {{ __global__ void {bounds} custom_kernel_{kernel}({', '.join(parameters)}); }}\n"


def strided(name: str, *, shape: bool = False) -> str:
    """The parameters of an array of bfloat16 whose source reads its strides, and perhaps its shape."""
    shaped = f"const __grid_constant__ Shape {name}_shape, " if shape else ""
    return f"const __nv_bfloat16* {name}, {shaped}const __grid_constant__ Strides {name}_strides"
