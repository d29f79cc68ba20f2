"""``corelm chat``: a conversation with a model, typed or piped."""

from __future__ import annotations

import argparse
import sys

from core.cli.loading import add_model_options, load_model, require_model
from core.cli.options import add_loading_options, natural
from core.cli.sampling import add_cache_options, add_ending_options, add_sampling_options, stream_options
from core.cli.sources import read_file
from core.cli.terminal import is_terminal, say
from core.errors import UsageError

SUMMARY = "talk with a model"
EPILOG = """\
typed:  /help lists the commands. Ctrl-C stops an answer and keeps what was said; Ctrl-D ends.
piped:  one message a line, or a command; answers go to stdout, each ended with a line end, and nothing else does
        unless a command prints it. The first error ends it, with its exit code.
both:   a line that ends with a backslash goes on in the next; \"\"\" begins and ends a message of several lines;
        // begins a message that begins with /.
        printf '%s\\n' 'Who are you?' 'Say it again.' '/save chat.json' | corelm chat --model MODEL
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add_model_options(parser)
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    parser.add_argument("--chat-template", metavar="FILE", help="a jinja2 template, instead of the model's own")
    parser.add_argument(
        "--context", type=natural, metavar="N", help="tokens of a prompt and its answer (default: the model's)"
    )
    parser.add_argument(
        "--context-policy",
        choices=("drop-oldest", "stop"),
        default="drop-oldest",
        help="when they are full: leave out the oldest turns until half is free, and say so (the default; the system "
        "prompt and the last message always stay), or stop with an error",
    )
    parser.add_argument("--plain", action="store_true", help="text as it comes, without Markdown, on a terminal too")
    add_ending_options(parser, "the checkpoint's own number, else 1024")
    add_sampling_options(parser)
    add_cache_options(parser)
    add_loading_options(parser)


def run(args: argparse.Namespace) -> int:
    """Talks, and returns the exit code."""
    require_model(args)
    options = stream_options(args)  # before minutes are spent on loading
    template = None if args.chat_template is None else read_file(args.chat_template)
    if sys.stdin is None:
        raise UsageError("messages are to be read from stdin, which is closed")
    interactive = is_terminal(sys.stdin)
    model = load_model(args)
    import core
    from core.chat import PLAIN_TEMPLATE
    from core.cli.reading import piped_line, typed_line
    from core.cli.repl import Repl
    from core.cli.screen import open_screen

    if template is None and model.tokenizer is not None and not model.tokenizer.can_chat:
        template = PLAIN_TEMPLATE
        say("note: the model has no chat template; it continues your messages as paragraphs of one text")
    chat = core.Conversation(
        model,
        system=args.system,
        chat_template=template,
        context=args.context,
        context_policy=args.context_policy,
        **options,
    )
    if interactive:
        say("/help lists the commands; Ctrl-D ends.")
    line = typed_line() if interactive else piped_line()
    screen = open_screen(plain=args.plain)
    return Repl(chat, line, screen, interactive=interactive, debug=args.debug).run()
