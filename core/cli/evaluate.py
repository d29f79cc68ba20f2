"""``corelm evaluate``: how well a model predicts a text file, and how far it is from another model."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli.options import SOURCE_HELP, add_loading_options, dtype_of, loading_options, natural
from core.cli.terminal import clean, put, put_json
from core.errors import EvaluationError, UsageError

if TYPE_CHECKING:
    from core.evaluation import Divergence, Evaluation, ModelSummary
    from core.language_model import LanguageModel

SUMMARY = "measure a model on a text: perplexity, and divergence from another model"
_LABEL = 13


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("source", metavar="PATH", help=SOURCE_HELP)
    parser.add_argument("--text", metavar="FILE", help="the text, in UTF-8")
    parser.add_argument(
        "--against", metavar="OTHER", help="KL divergence from this reference model, loaded beside the first"
    )
    parser.add_argument(
        "--context",
        type=natural,
        metavar="N",
        help="tokens of a window (default: what the model was made for, 2048 at most)",
    )
    parser.add_argument(
        "--stride", type=natural, metavar="S", help="tokens from one window to the next (default: half the context)"
    )
    parser.add_argument("--max-tokens", "-n", type=natural, metavar="N", help="read only the first N tokens")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object, as core/evaluation/result.py describes it"
    )
    add_loading_options(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates, and returns the exit code."""
    if args.text is None:
        raise UsageError("evaluate on what? --text is missing", hint="For instance --text FILE, a text in UTF-8.")
    import core
    from core.cli.progress import evaluation_progress
    from core.evaluation.settings import check_settings

    check_settings(args.context, args.stride, args.max_tokens)  # before minutes are spent on loading
    text = _read(Path(args.text))
    model = _load(args.source, args)
    against = None if args.against is None else _load(args.against, args, reference=True)
    with evaluation_progress() as progress:
        found = core.evaluate(
            model,
            text,
            against=against,
            context=args.context,
            stride=args.stride,
            max_tokens=args.max_tokens,
            progress=progress,
        )
    if args.json:
        put_json(_finite(dataclasses.asdict(found)))
    else:
        put(_report(found))
    return 0


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"the text cannot be read: {error.strerror}", where=path) from None
    if not data:
        raise EvaluationError("the text is empty", where=path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EvaluationError(
            "the text is not UTF-8", where=path, found=f"byte {data[error.start]:#04x} at offset {error.start:,}"
        ) from None


def _load(source: str, args: argparse.Namespace, *, reference: bool = False) -> LanguageModel:
    """Loading options are about the model under test; a reference shares only what is about this machine."""
    import core
    from core.cli.progress import loading_progress

    shared = {"dtype": dtype_of(args), "strict": args.strict}
    with loading_progress() as progress:
        return core.load(source, progress=progress, **(shared if reference else loading_options(args)))


def _report(found: Evaluation) -> list[str]:
    error = "" if found.standard_error is None else f" ± {found.standard_error:.4f} (standard error)"
    facts = {
        "model": _model(found.model),
        "tokens": f"{found.tokens:,} scored in {found.windows:,} windows of {found.context:,}, stride {found.stride:,}",
        "nats/token": f"{found.nats_per_token:.4f}{error}",
        "perplexity": f"{found.perplexity:.4f}",
    }
    if found.bits_per_byte is not None:
        facts["bits/byte"] = f"{found.bits_per_byte:.4f} ({found.bytes:,} bytes)"
    facts["time"] = f"{found.seconds:.1f} s, {found.tokens_per_second:,.0f} tok/s"
    if found.divergence is not None:
        facts |= _divergence(found.divergence)
    return [clean(found.model.source), *(f"  {label:{_LABEL}}{clean(text)}" for label, text in facts.items())]


def _divergence(found: Divergence) -> dict[str, str]:
    return {
        "reference": f"{found.reference.source}: {_model(found.reference)}",
        "KL": f"mean {found.mean:.5f}, median {found.median:.5f} nats/token",
        "": f"95 % {found.p95:.5f}, 99 % {found.p99:.5f}, max {found.max:.5f}",
        "same top-1": f"{found.top1_agreement:.2%}",
    }


def _model(model: ModelSummary) -> str:
    quantized = "not quantized" if model.quantization == "none" else model.quantization
    return f"{model.model_type}, {quantized}, computes in {model.compute_dtype} on {model.device}"


def _finite(value: Any) -> Any:
    """What JSON has no number for is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
