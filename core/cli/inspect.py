"""``corelm inspect``: what a checkpoint is, who loads it and what would happen; or, with ``--plugins``, who loads what.

Reads names, headers and small files only.
"""

from __future__ import annotations

import argparse
import dataclasses

from core.cli.options import SOURCE_HELP, add_loading_options, loading_options
from core.cli.terminal import fold, put, put_json, say
from core.errors import UsageError

SUMMARY = "say what a checkpoint is, who loads it and what would happen, from its headers alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("source", nargs="?", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("--json", action="store_true", help="one JSON object, as core/cli/inspection.py describes it")
    parser.add_argument("--keys", action="store_true", help="every tensor: its parameter and how it gets there")
    parser.add_argument("--plugins", action="store_true", help="instead: every claim to a model type, for a bug report")
    parser.add_argument(
        "--import", action="store_true", dest="imports", help="with --plugins: import each in a process of its own"
    )
    add_loading_options(parser)


def run(args: argparse.Namespace) -> int:
    """Inspects, and returns the exit code: 1 where a load would be refused."""
    _check(args)
    if args.plugins:
        return _run_plugins(args)
    from core.cli.examine import examine
    from core.cli.report import key_lines, report

    found = examine(
        args.source,
        keys=args.keys,
        **loading_options(args),
    )
    if args.json:
        put_json(dataclasses.asdict(found))
    elif args.keys:
        put(key_lines(found.keys or ()))
    elif found.checkpoint is not None:
        put(report(found))
    for problem in found.errors:
        say(fold("error: ", problem.message))
    return 0 if found.ok else 1


def _check(args: argparse.Namespace) -> None:
    if args.plugins and (args.source or args.keys):
        raise UsageError("--plugins lists plugins, not a checkpoint", hint="Leave out SOURCE and --keys, or --plugins.")
    if not args.plugins and args.source is None:
        raise UsageError("inspect what?", hint=f"SOURCE is {SOURCE_HELP}; --plugins lists the plugins.")
    if args.imports and not args.plugins:
        raise UsageError("--import needs --plugins")


def _run_plugins(args: argparse.Namespace) -> int:
    from core.cli.plugins import list_plugins, plugin_lines
    from core.installation import check_mlx

    if args.imports:
        check_mlx()  # no plugin can be imported without it, and none of them is to blame
    found = list_plugins(imports=args.imports)
    if args.json:
        put_json(dataclasses.asdict(found))
    else:
        put(plugin_lines(found))
    return 0
