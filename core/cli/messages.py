"""What a command is asked: a text, token ids or a conversation, from an argument, stdin or a file."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

from core.cli.sources import piped_text, read_file, read_stdin
from core.errors import UsageError


@dataclass(frozen=True)
class Asked:
    """What is to be answered: a text, or messages; tools with the latter."""

    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = field(default=None)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Where a prompt comes from; one of the ways is to be chosen."""
    parser.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="a message where the model has a chat template, else a text to continue; text that is piped in comes "
        "before it, with an empty line between, or in its place; - waits for stdin, whatever it is",
    )
    parser.add_argument("--file", metavar="FILE", help="read the prompt from a file, as from stdin")
    parser.add_argument(
        "--messages", metavar="FILE", help="a conversation in JSON: a list of messages, or what chat's /save wrote"
    )
    parser.add_argument("--tools", metavar="FILE", help="functions that the model may call, in JSON: OpenAI's form")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt, for a model with a chat template")


def asked(args: argparse.Namespace) -> Asked:
    """What the options of ``add_prompt_options`` ask.

    Raises:
        UsageError: not exactly one prompt, or options that exclude each other.
        ConversationError: a file that holds no conversation or no tools.
    """
    from core.chat.messages import checked_tools
    from core.chat.storage import read_conversation, read_json

    ways = {"PROMPT": args.prompt, "--file": args.file, "--messages": args.messages}
    given = [name for name, value in ways.items() if value is not None]
    piped = None if given else piped_text()
    if len(given) + (piped is not None) != 1:
        expected = f"{' or '.join(ways)}, or text that is piped in"
        raise UsageError("one prompt is needed", expected=expected, found=", ".join(given) or "none of them")
    if args.raw or args.ids:
        mode = "--raw" if args.raw else "--ids"
        for name in ("messages", "tools", "system"):
            if getattr(args, name) is not None:
                raise UsageError(f"{mode} goes without a chat template, and --{name} needs one")
    tools = None if args.tools is None else checked_tools(read_json(args.tools), args.tools)
    if args.messages is None:
        text = _text(args) if piped is None else piped
        if args.system is None and tools is None:
            return Asked(text)
        return Asked(messages=[*_system(args.system), {"role": "user", "content": text}], tools=tools)
    stored = read_conversation(args.messages)
    if not stored.messages:
        raise UsageError("the conversation has no messages", found=args.messages)
    if args.system is not None and stored.messages[0]["role"] == "system":
        raise UsageError(f"{args.messages} has a system prompt of its own, so there is no room for --system")
    return Asked(messages=[*_system(args.system), *stored.messages], tools=stored.tools if tools is None else tools)


def _text(args: argparse.Namespace) -> str:
    if args.file is not None:
        return read_file(args.file)
    if args.prompt == "-":
        return read_stdin()
    prompt: str = args.prompt
    piped = None if args.ids else piped_text(needed=False)
    return prompt if piped is None else f"{piped}\n\n{prompt}"


def _system(text: str | None) -> list[dict[str, Any]]:
    return [] if text is None else [{"role": "system", "content": text}]
