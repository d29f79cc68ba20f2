"""``corelm convert``: a checkpoint written anew, in another layout, dtype or quantization."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from core.cli.options import DTYPES, SOURCE_HELP, dtype_of, natural
from core.cli.terminal import clean, put, size
from core.errors import UsageError
from core.layouts import FORMATS, LAYOUTS

if TYPE_CHECKING:
    from core.saving import Conversion

SUMMARY = "write a checkpoint anew: another layout, dtype or quantization"
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[KMGT]i?)?B?", re.IGNORECASE)
_SHOWN = 3
_NAMED = 12  # files that stay behind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("source", metavar="SRC", help=SOURCE_HELP)
    parser.add_argument("destination", metavar="DST", help="the directory to write")
    target = parser.add_argument_group("target")
    target.add_argument("--layout", choices=LAYOUTS, help="names and stacking of tensors; default: the source's")
    target.add_argument("--dtype", choices=DTYPES, help="dtype of all floats; default: each tensor's own")
    target.add_argument("--max-shard-size", type=shard_size, metavar="SIZE", help="for instance 5GB, the default")
    quantization = parser.add_argument_group("quantization", "default: as the source")
    quantization.add_argument("--bits", type=natural, metavar="B", help="bits of a weight")
    quantization.add_argument("--group-size", type=natural, metavar="G", help="weights that share a scale")
    quantization.add_argument("--mode", metavar="M", help="affine, or another mode that MLX has")
    quantization.add_argument("--recipe", metavar="R", help="a named mixture of settings, instead of --bits")
    quantization.add_argument("--dequantize", action="store_true", help="back to floats")
    quantization.add_argument(
        "--approximate",
        action="store_true",
        help="round GPTQ's and AWQ's scales to float16, which is smaller",
    )
    loading = parser.add_argument_group("loading")
    loading.add_argument("--plugin", metavar="P", help="distribution or module that reads it")
    loading.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub repository")
    loading.add_argument("--format", choices=FORMATS, help="which weights to read, where a checkpoint holds them twice")
    loading.add_argument("--strict", action="store_true", help="refuse config keys that nobody reads")
    loading.add_argument("--no-finite-check", action="store_true", help="convert even weights with NaN or infinity")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that is there")


def shard_size(text: str) -> int:
    """Bytes, from ``5GB`` (10⁹), ``5GiB`` (2³⁰) or a plain number."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"no size: {text!r} (write it like 5GB or 500MiB)")
    unit = (match["unit"] or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    count = int(float(match["number"]) * base ** " kmgt".index(unit[:1] or " "))
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least one byte")
    return count


def run(args: argparse.Namespace) -> int:
    """Converts, and returns the exit code."""
    from core.cli.progress import loading_progress
    from core.saving import DEFAULT_SHARD_SIZE, convert, plan_conversion

    options: dict[str, Any] = {
        "layout": args.layout,
        "dtype": dtype_of(args),
        "quantize": _quantize(args),
        "dequantize": args.dequantize,
        "approximate": args.approximate,
        "max_shard_size": args.max_shard_size or DEFAULT_SHARD_SIZE,
        "force": args.force,
        "plugin": args.plugin,
        "strict": args.strict,
        "revision": args.revision,
        "format": args.format,
    }
    if args.dry_run:
        put(_report(plan_conversion(args.source, args.destination, **options), "would be written"))
        return 0
    with loading_progress("converting") as progress:
        done = convert(
            args.source, args.destination, check_finite=not args.no_finite_check, progress=progress, **options
        )
    put(_report(done, "written and verified"))
    return 0


def _quantize(args: argparse.Namespace) -> Any:
    """What ``core.load`` takes as ``quantize=``; None where nothing is asked for."""
    settings = (args.bits, args.group_size, args.mode)
    asked = any(value is not None for value in settings) or args.recipe is not None
    if args.dequantize and asked:
        raise UsageError(
            "--dequantize contradicts --bits, --group-size, --mode and --recipe", hint="Choose one of them."
        )
    if args.recipe is not None:
        if any(value is not None for value in settings):
            raise UsageError("--recipe contradicts --bits, --group-size and --mode", hint="Choose one of them.")
        return args.recipe
    if not asked:
        return None
    if args.bits is None and args.group_size is not None:
        raise UsageError("--group-size needs --bits", hint="For instance --bits 4 --group-size 64.")
    if args.bits is None:
        return args.mode  # with MLX's own defaults for it
    if args.group_size is None and args.mode in (None, "affine"):
        return args.bits
    from core.weights import Quantization

    return Quantization(args.bits, args.group_size or 64, args.mode or "affine")


def _report(conversion: Conversion, verb: str) -> Iterator[str]:
    from core.saving.card import describe_recipe

    plan, target = conversion.plan, conversion.target
    yield f"{clean(plan.source)} → {clean(conversion.place)}: {verb}"
    tensors = [tensor for shard in target.shards for tensor in shard.tensors]
    facts = {
        "model type": f"{target.model_type}, read by {plan.plugin}",
        "layout": target.layout if target.layout == target.read_from else f"{target.read_from} → {target.layout}",
        "tensors": f"{len(tensors):,}, {target.parameters:,} parameters",
        "stored as": _dtypes(conversion),
        "quantization": describe_recipe(target.quantized),
        "weights": f"{size(target.nbytes)} in {len(target.shards)} files: {_shards(conversion)}",
        "other files": ", ".join(name for name in conversion.files if not name.endswith(".safetensors")),
    }
    if conversion.weight_error is not None:
        facts["weight error"] = f"{conversion.weight_error:.3g} at most, by --approximate"
    if plan.unread_keys:
        facts["unread keys"] = ", ".join(plan.unread_keys)
    if conversion.left:
        more = [f"and {len(conversion.left) - _NAMED:,} more"] if len(conversion.left) > _NAMED else []
        facts["not copied"] = ", ".join([*conversion.left[:_NAMED], *more])
    reasons = Counter(target.ignored.values())
    if reasons:
        facts["left out"] = "; ".join(f"{count:,} tensors: {reason}" for reason, count in reasons.items())
    for label, text in facts.items():
        yield f"  {label:14}{clean(text)}"


def _dtypes(conversion: Conversion) -> str:
    from core.weights.dtypes import SPELLINGS

    sizes: dict[str, int] = {}
    for shard in conversion.target.shards:
        for tensor in shard.tensors:
            sizes[SPELLINGS[tensor.dtype]] = sizes.get(SPELLINGS[tensor.dtype], 0) + tensor.nbytes
    return ", ".join(f"{dtype} ({size(count)})" for dtype, count in sizes.items())


def _shards(conversion: Conversion) -> str:
    shown = [f"{shard.name} ({size(shard.nbytes)})" for shard in conversion.target.shards]
    return ", ".join(shown if len(shown) <= _SHOWN else [shown[0], "…", shown[-1]])
