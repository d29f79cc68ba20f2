"""Loading a model for a command that runs it: ``--model``, checks, and what is said about the load."""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING

from core.cli.options import SOURCE_HELP, loading_options
from core.cli.terminal import say
from core.errors import UsageError

if TYPE_CHECKING:
    from core.language_model import LanguageModel


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and what is checked about it; ``add_loading_options`` has the rest."""
    parser.add_argument("--model", "-m", metavar="M", help=SOURCE_HELP)
    checks = parser.add_argument_group("checks")
    checks.add_argument("--no-memory-check", action="store_true", help="load even what is larger than the memory")
    checks.add_argument("--no-finite-check", action="store_true", help="load even weights with NaN or infinity")


def require_model(args: argparse.Namespace) -> None:
    """Refuses a command without a model.

    Raises:
        UsageError: ``--model`` is missing.
    """
    if args.model is None:
        raise UsageError("which model? --model is missing", hint=f"For instance --model demo:mistral: {SOURCE_HELP}.")


def load_model(args: argparse.Namespace, *, tokenizer: bool = True) -> LanguageModel:
    """The model, with a bar where a person watches, and what there is to say about it on stderr."""
    import core
    from core.cli.progress import loading_progress

    with loading_progress() as progress:
        model = core.load(
            args.model,
            check_memory=not args.no_memory_check,
            check_finite=not args.no_finite_check,
            progress=progress,
            tokenizer=tokenizer,
            **loading_options(args),
        )
    if model.report.weight_error is not None:
        say(f"largest error of a weight by --approximate: {model.report.weight_error:.3g}")
    unread = model.report.plan.unread_keys
    if unread:
        warnings.warn(
            f"nobody reads the config keys {', '.join(unread)}; if they change what the model computes, it is wrong",
            stacklevel=1,
        )
    return model
