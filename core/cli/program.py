"""The program: parses arguments, runs one command, and turns whatever happens into messages and an exit code.

Exit codes: 0 success; 1 something is wrong (with the checkpoint, a plugin, the machine); 2 the command makes no sense;
130 interrupted; 141 whoever read the output has gone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Protocol

import core
from core.cli import bench, chat, convert, doctor, evaluate, generate, inspect, new
from core.cli.terminal import clean_prose, fold, is_terminal, say
from core.errors import CoreError, UsageError


class Command(Protocol):
    """A module that is a command; ``SUMMARY`` is its line in the list, its docstring is for developers."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Does the work and returns the exit code; raises what it cannot do."""


COMMANDS: dict[str, Command] = {
    "generate": generate,
    "chat": chat,
    "inspect": inspect,
    "convert": convert,
    "evaluate": evaluate,
    "bench": bench,
    "doctor": doctor,
    "new": new,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that ``argv`` asks for (None: the process's own arguments) and returns the exit code."""
    _open_what_is_closed()
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    command = COMMANDS[args.command]
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding has not is no reason to stop.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _guarded(command, args)


def _open_what_is_closed() -> None:
    """Opens /dev/null in place of stdin, stdout or stderr where one is closed, else the next file gets its number.

    MLX takes the number 0 for a failure; and what a library prints would be written into that file.
    """
    opened = os.open(os.devnull, os.O_RDWR)
    while opened <= 2:
        os.set_inheritable(opened, True)  # as the real ones are
        opened = os.open(os.devnull, os.O_RDWR)
    os.close(opened)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="corelm",
        description="Load a language model on MLX by its model_type: Mistral, Mixtral, and what plugins add.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"corelm {core.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.SUMMARY, description=command.SUMMARY, allow_abbrev=False)
        command.add_arguments(own)
        own.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _guarded(command: Command, args: argparse.Namespace) -> int:
    try:
        code = _run(command, args)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a failure is still ours to report
        return code
    except KeyboardInterrupt:
        _settle_stdout()
        if is_terminal(sys.stderr):
            say("")  # the shell's prompt belongs on a line of its own
        return 130
    except BrokenPipeError:
        _settle_stdout()
        return 141
    except CoreError as error:
        _show_error(str(error), args)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        _show_error(str(error), args)
        return 1
    except Exception as error:
        hint = "This is a fault of corelm or of a plugin; --debug shows where it happened."
        _show_error(f"{type(error).__name__}: {error}\n{hint}", args)
        return 1


def _run(command: Command, args: argparse.Namespace) -> int:
    try:
        return command.run(args)
    except ImportError:
        from core.installation import check_mlx

        check_mlx()  # raises what to do, where MLX is what cannot be imported
        raise


def _show_error(message: str, args: argparse.Namespace) -> None:
    _settle_stdout()
    if args.debug:
        say(clean_prose(traceback.format_exc()))
    say(fold("error: ", message))


def _show_warning(message: Warning | str, *_where: object, **_more: object) -> None:
    say(fold("warning: ", " ".join(str(message).split())))


def _settle_stdout() -> None:
    """Writes out what was printed; where that fails, lets it go nowhere, or the interpreter's last flush would fail."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
