"""``corelm generate``: text out of a model, printed as it comes.

Knows what a prompt means at a command line: a user's message where the checkpoint has a chat template, else raw text.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from typing import TYPE_CHECKING

from core.cli.options import SOURCE_HELP, add_loading_options, loading_options, natural
from core.cli.terminal import clean_prose, is_terminal, say, size
from core.errors import UsageError

if TYPE_CHECKING:
    from core.generation import GenerationResult
    from core.language_model import LanguageModel, Prompt

SUMMARY = "continue a text, or answer a message"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        help="a message where the model has a chat template, else a text to continue; - reads it from stdin, "
        "without the line end that ends it",
    )
    parser.add_argument("--model", "-m", metavar="M", help=SOURCE_HELP)
    parser.add_argument("--max-tokens", "-n", type=natural, metavar="N", help="generate at most N tokens")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    parser.add_argument("--ids", action="store_true", help="PROMPT is token ids, and so is what comes: no tokenizer")
    parser.add_argument("--stats", action="store_true", help="say on stderr how fast it was and what was used")
    sampling = parser.add_argument_group("sampling", "the defaults are the checkpoint's own, else the likeliest token")
    sampling.add_argument("--temperature", "-t", type=float, metavar="T", help="0 takes the likeliest token")
    sampling.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest, up to this probability")
    sampling.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest; 0 means all")
    sampling.add_argument("--seed", "-s", type=int, metavar="S", help="repeat a generation")
    add_loading_options(parser)
    checks = parser.add_argument_group("checks")
    checks.add_argument("--no-memory-check", action="store_true", help="load even what is larger than the memory")
    checks.add_argument("--no-finite-check", action="store_true", help="load even weights with NaN or infinity")


def run(args: argparse.Namespace) -> int:
    """Generates, and returns the exit code."""
    if args.model is None:
        raise UsageError("which model? --model is missing", hint=f"For instance --model demo:mistral: {SOURCE_HELP}.")
    _check_sampling(args)  # before minutes are spent on loading
    text = _prompt(args.prompt)
    prompt: Prompt = _ids(text) if args.ids else text
    model = _load(args)
    if model.report.weight_error is not None:
        say(f"largest error of a weight by --approximate: {model.report.weight_error:.3g}")
    unread = model.report.plan.unread_keys
    if unread:
        warnings.warn(
            f"nobody reads the config keys {', '.join(unread)}; if they change what the model computes, it is wrong",
            stacklevel=1,
        )
    templated = not args.raw and model.tokenizer is not None and model.tokenizer.chat_template is not None
    stream = model.stream(
        [{"role": "user", "content": text}] if templated else prompt,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
    )
    # A file or another program gets the text as it is; a terminal would obey the control characters in it.
    shown = clean_prose if is_terminal(sys.stdout) else str
    result: GenerationResult | None = None
    with contextlib.closing(stream):  # type: ignore[type-var]
        for chunk in stream:
            if not args.ids:
                print(shown(chunk.text), end="", flush=True)
            elif chunk.token_id is not None:
                print(chunk.token_id, end=" ", flush=True)
            result = chunk.result or result
    print(flush=True)
    if args.stats and result is not None:
        say(_stats(result, templated))
    return 0


def _check_sampling(args: argparse.Namespace) -> None:
    from core.generation import Sampling

    given = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k", "seed")}
    Sampling(**{name: value for name, value in given.items() if value is not None}).checked()


def _prompt(argument: str) -> str:
    if argument != "-":
        return argument
    if sys.stdin is None:
        raise UsageError("the prompt is to be read from stdin, which is closed")
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("the prompt on stdin is not UTF-8", found=f"byte {error.object[error.start]:#04x}") from None
    return text.removesuffix("\n").removesuffix("\r")


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    strange = next((word for word in words if not word.isdecimal()), None)
    if strange is not None or not words:
        found = repr((strange or text)[:40])
        raise UsageError("with --ids, the prompt is token ids", expected='for instance "1 22 333"', found=found)
    return [int(word) for word in words]


def _load(args: argparse.Namespace) -> LanguageModel:
    import core
    from core.cli.progress import loading_progress

    with loading_progress() as progress:
        return core.load(
            args.model,
            check_memory=not args.no_memory_check,
            check_finite=not args.no_finite_check,
            progress=progress,
            tokenizer=not args.ids,
            **loading_options(args),
        )


def _stats(result: GenerationResult, templated: bool) -> str:
    stats, sampling = result.stats, result.sampling
    kind = "chat template" if templated else "raw"
    choice = "greedy"
    if sampling.temperature:
        choice = f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, top_k {sampling.top_k}, "
        choice += f"seed {sampling.seed}"
    lines = [
        f"prompt    {len(result.prompt_ids)} tokens ({kind}), {stats.prompt_tps:.1f} tok/s",
        f"decode    {len(result.token_ids)} tokens, {stats.decode_tps:.1f} tok/s, ended by {result.finish_reason}",
        f"memory    {size(stats.peak_memory)} at most",
        f"sampling  {choice}",
    ]
    return "\n".join(lines)
