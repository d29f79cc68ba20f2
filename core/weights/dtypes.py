"""The dtypes of a safetensors header that a parameter may have, and the MLX dtypes for them."""

from __future__ import annotations

import mlx.core as mx

from core.errors import UsageError

SPELLINGS: dict[mx.Dtype, str] = {
    mx.bool_: "BOOL",
    mx.uint8: "U8",
    mx.int8: "I8",
    mx.uint16: "U16",
    mx.int16: "I16",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.float32: "F32",
    mx.uint64: "U64",
    mx.int64: "I64",
    mx.complex64: "C64",
}
"""MLX's dtypes in safetensors' spelling."""

FLOATS: dict[str, mx.Dtype] = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
PACKED = "U32"  # MLX packs quantized elements of any width into 32-bit words
BYTES = "U8"  # scales of the mx and nv modes are 8-bit floats, which MLX holds as bytes


def dtype_from(given: mx.Dtype | str | None) -> mx.Dtype | None:
    """A dtype, or its name as users write it; None stays None.

    Raises:
        UsageError: not a dtype that parameters may have, nor the name of one.
    """
    if given is None or isinstance(given, mx.Dtype):
        return given
    names = {spelling(dtype): dtype for dtype in FLOATS.values()}
    if not isinstance(given, str) or given not in names:
        raise UsageError("this is not a dtype that a model may have", expected=" or ".join(names), found=repr(given))
    return names[given]


def spelling(dtype: mx.Dtype) -> str:
    """An MLX dtype as users write it: ``bfloat16``."""
    return str(dtype).removeprefix("mlx.core.")
