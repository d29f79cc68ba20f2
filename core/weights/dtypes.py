"""Which dtypes of a safetensors header a parameter may have, and what MLX makes of them."""

from __future__ import annotations

import mlx.core as mx

FLOATS: dict[str, mx.Dtype] = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
PACKED = "U32"  # MLX packs quantized elements of any width into 32-bit words
BYTES = "U8"  # scales of the mx and nv modes are 8-bit floats, which MLX holds as bytes


def spelling(dtype: mx.Dtype) -> str:
    """An MLX dtype as users write it: ``bfloat16``."""
    return str(dtype).removeprefix("mlx.core.")
