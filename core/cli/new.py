"""``corelm new``: a package for a new model type, which works as it is written and waits to be changed."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from core.cli.terminal import clean, put

SUMMARY = "write a plugin package for a model type: it installs, passes its tests, and waits to be changed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model_type", metavar="MODEL_TYPE", help="as in config.json")
    parser.add_argument(
        "--like",
        choices=("mistral", "mixtral"),
        default="mistral",
        help="what it starts as: a dense decoder (mistral, the default) or a mixture of experts (mixtral)",
    )
    parser.add_argument("--dir", type=Path, default=Path(), metavar="D", help="where to write it, instead of here")


def run(args: argparse.Namespace) -> int:
    """Writes the package and says what to do with it."""
    from core.scaffold import Names, write_package

    names = Names(args.model_type)
    place = write_package(names, args.like, args.dir)
    put(
        [
            f"{clean(place)} loads {names.model_type} as if it were {args.like}. Next:",
            "",
            f"  cd {clean(shlex.quote(str(place)))}",
            '  pip install --editable ".[test]"',
            "  pytest",
            "  corelm inspect --plugins",
        ]
    )
    return 0
