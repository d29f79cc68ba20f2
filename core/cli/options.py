"""Options that several commands share, and what their values mean to ``core.load``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from core.layouts import FORMATS

if TYPE_CHECKING:
    import mlx.core as mx

DTYPES = ("float32", "float16", "bfloat16")
SOURCE_HELP = "a directory, a hub repository org/name[@revision], or demo:NAME"


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """How a checkpoint is found and read."""
    group = parser.add_argument_group("loading")
    group.add_argument(
        "--plugin", metavar="P", help="distribution or module that loads it, instead of the usual choice"
    )
    group.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub repository")
    group.add_argument("--format", choices=FORMATS, help="which weights to read, where a checkpoint holds them twice")
    group.add_argument("--dtype", choices=DTYPES, help="compute in this dtype, instead of the checkpoint's")
    group.add_argument("--quantize", metavar="BITS", help="quantize as it is read: bits, or a recipe such as mixed_4_6")
    group.add_argument("--dequantize", action="store_true", help="make floats of quantized weights as they are read")
    group.add_argument(
        "--approximate",
        action="store_true",
        help="round GPTQ's and AWQ's scales to float16, which is smaller",
    )
    group.add_argument("--strict", action="store_true", help="refuse config keys that nobody reads")


def dtype_of(args: argparse.Namespace) -> mx.Dtype | None:
    """The dtype asked for; None when the choice is the checkpoint's."""
    import mlx.core as mx

    return None if args.dtype is None else getattr(mx, args.dtype)


def loading_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the options of ``add_loading_options`` are to ``core.load``."""
    text: str | None = args.quantize
    return {
        "plugin": args.plugin,
        "revision": args.revision,
        "format": args.format,
        "dtype": dtype_of(args),
        "quantize": int(text) if text is not None and text.isdecimal() else text,
        "dequantize": args.dequantize,
        "approximate": args.approximate,
        "strict": args.strict,
    }


def natural(text: str) -> int:
    """An argument that is an integer, 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative: {value}")
    return value
