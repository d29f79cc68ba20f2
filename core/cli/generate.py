"""``corelm generate``: text out of a model, printed as it comes.

A prompt is a user's message where the checkpoint has a chat template, else raw text.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from core.cli.events import put_chunk, put_result
from core.cli.loading import add_model_options, load_model, require_model
from core.cli.messages import Asked, add_prompt_options, asked
from core.cli.options import add_loading_options, natural
from core.cli.sampling import add_cache_options, add_ending_options, add_sampling_options, described, stream_options
from core.cli.terminal import clean_prose, is_terminal, say, size
from core.errors import UsageError

if TYPE_CHECKING:
    from core.generation import GenerationChunk, GenerationResult
    from core.language_model import LanguageModel, Prompt

SUMMARY = "continue a text, or answer a message"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_prompt_options(parser)
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    parser.add_argument("--ids", action="store_true", help="PROMPT is token ids, and so is what comes: no tokenizer")
    add_model_options(parser)
    add_ending_options(parser, "the checkpoint's own number, else 256")
    output = parser.add_argument_group("output")
    output.add_argument("--stats", action="store_true", help="say on stderr how fast it was and what was used")
    output.add_argument(
        "--json", action="store_true", help="one JSON object a line, as core/cli/events.py describes it"
    )
    output.add_argument("--stream", action="store_true", help="with --json: a line for each piece of text, as it comes")
    output.add_argument(
        "--logprobs", type=natural, metavar="N", help="with --json: log-probabilities, also of the N likeliest tokens"
    )
    add_sampling_options(parser)
    add_cache_options(parser)
    add_loading_options(parser)


def run(args: argparse.Namespace) -> int:
    """Generates, and returns the exit code."""
    from core.cli.progress import prompt_progress

    require_model(args)
    if not args.json and (args.stream or args.logprobs is not None):
        raise UsageError("--stream and --logprobs mean something with --json only")
    if args.ids and args.stop:
        raise UsageError("--ids goes without a tokenizer, and --stop needs one")
    options = stream_options(args)  # before minutes are spent on loading
    if args.logprobs is not None:
        options["logprobs"] = args.logprobs
    wanted = asked(args)
    ids = _ids(wanted.text or "") if args.ids else None
    model = load_model(args, tokenizer=not args.ids)
    prompt = _prompt(model, wanted, args.raw) if ids is None else ids
    templated = not isinstance(prompt, str) and ids is None
    shown = _Output(args)
    result: GenerationResult | None = None
    with contextlib.ExitStack() as bar:
        progress = bar.enter_context(prompt_progress())
        stream = model.stream(prompt, tools=wanted.tools, progress=progress, **options)
        with contextlib.closing(stream):  # type: ignore[type-var]
            for chunk in stream:
                bar.close()  # the prompt is processed
                shown.add(chunk)
                result = chunk.result or result
    assert result is not None
    shown.finish(result, model, templated)
    if args.stats:
        say(_stats(result, templated))
    return 0


class _Output:
    """What goes to stdout: text, ids, or lines of JSON."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        # A file or another program gets the text as it is; a terminal would obey the control characters in it.
        self._shown = clean_prose if is_terminal(sys.stdout) else str

    def add(self, chunk: GenerationChunk) -> None:
        if self._args.json:
            if self._args.stream:
                put_chunk(chunk)
        elif not self._args.ids:
            print(self._shown(chunk.text), end="", flush=True)
        elif chunk.token_id is not None:
            print(chunk.token_id, end=" ", flush=True)

    def finish(self, result: GenerationResult, model: LanguageModel, templated: bool) -> None:
        if not self._args.json:
            print(flush=True)
            return
        from core.text.tool_calls import ToolCalls, parse_tool_calls

        found = None
        if templated and model.tokenizer is not None:
            found = parse_tool_calls(result.token_ids, model.tokenizer)
        text = None if model.tokenizer is None else found.text if found and found.calls else result.text
        put_result(result, model=self._args.model, text=text, found=found or ToolCalls(""))


def _prompt(model: LanguageModel, wanted: Asked, raw: bool) -> Prompt:
    if wanted.messages is not None:
        return wanted.messages
    assert wanted.text is not None
    if raw or model.tokenizer is None or model.tokenizer.chat_template is None:
        return wanted.text
    return [{"role": "user", "content": wanted.text}]


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    strange = next((word for word in words if not word.isdecimal()), None)
    if strange is not None or not words:
        found = repr((strange or text)[:40])
        raise UsageError("with --ids, the prompt is token ids", expected='for instance "1 22 333"', found=found)
    return [int(word) for word in words]


def _stats(result: GenerationResult, templated: bool) -> str:
    stats = result.stats
    kind = "chat template" if templated else "raw"
    lines = [
        f"prompt    {len(result.prompt_ids)} tokens ({kind}), {stats.prompt_tps:.1f} tok/s",
        f"decode    {len(result.token_ids)} tokens, {stats.decode_tps:.1f} tok/s, ended by {result.finish_reason}",
        f"memory    {size(stats.peak_memory)} at most",
        f"sampling  {described(result.sampling)}",
    ]
    return "\n".join(lines)
