"""Makes a reference: a random model of any architecture that transformers has, and transformers' results for it.

    python -m core.testing.reference CONFIG OUT [--tiny]

Writes ``config.json``, ``model.safetensors``, ``reference.npz`` (``core.testing.reference_data`` lists its arrays) and
``meta.json``. It needs the extra ``reference`` (torch and transformers). The model is made in
``core.testing.transformers_model``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import CheckpointError, ConfigError, CoreError, UsageError
from core.testing.command import guarded
from core.testing.shrink import WINDOW, changes, shrunk

_EXTRA = ("torch", "transformers", "safetensors")


def make_reference(
    source: str | Path, out: Path, *, tiny: bool = False, seed: int = 0, length: int = 40, force: bool = False
) -> list[str]:
    """Makes a reference directory.

    Args:
        source: a directory with a ``config.json``, such a file, or a ``model_type`` of transformers.
        out: a directory, new or empty.
        tiny: shrink the sizes; without it, the config is used as it is.
        seed: of the first attempt. If float32 cannot hold the model's numbers, or its best tokens are nearly tied, the
            next seed is tried.
        length: tokens of the prompt.
        force: write into a directory that holds files.

    Returns:
        What was done, one sentence each.

    Raises:
        CoreError: the extra is not installed.
        CheckpointError, ConfigError: the source cannot be read, or transformers cannot make a model of it.
        UsageError: arguments out of range, or a model too large for a reference.
    """
    if length < 8:
        raise UsageError("the prompt is too short", expected="--length of 8 or more", found=length)
    if out.exists() and not out.is_dir():
        raise UsageError("is a file, and should be a directory", where=out)
    if out.exists() and any(out.iterdir()) and not force:
        raise UsageError("holds files already", where=out, hint="Choose another place, or --force writes into it.")
    raw, where = _read(source)
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise CoreError(
            f"making a reference needs {' and '.join(missing)}",
            hint='pip install "corelm[reference]" installs what is needed; the tests that use a reference need none.',
        )
    from core.testing.transformers_model import default_config, write

    bare = raw is None
    raw = default_config(str(source)) if raw is None else raw
    small = shrunk(raw) if tiny else raw
    if bare and tiny and raw.get("sliding_window", 0) is None:
        small["sliding_window"] = WINDOW  # published models of a type with this key have a window, so test one
    notes = changes(raw, small)
    return [*notes, *write(small, out, where=where, seed=seed, length=length)]


def _read(source: str | Path) -> tuple[dict[str, Any] | None, str]:
    """A parsed config, or None where the source is a ``model_type``; and how errors name it."""
    path = Path(source)
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        if path.is_dir() or path.suffix or len(path.parts) > 1:
            raise CheckpointError("there is no such config", where=file, expected="config.json, or a model_type")
        return None, str(source)
    try:
        raw = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot be read as JSON", where=file, found=str(error)) from error
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise ConfigError("key 'model_type' is missing", where=file, hint="A config.json of transformers has one.")
    return raw, str(file)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 when the reference is written."""
    parser = argparse.ArgumentParser(
        prog="python -m core.testing.reference",
        description="Make a random model and what transformers computes for it.",
    )
    parser.add_argument("source", metavar="CONFIG", help="a directory, a config.json, or a model_type of transformers")
    parser.add_argument("out", metavar="OUT", type=Path, help="the directory to write")
    parser.add_argument("--tiny", action="store_true", help="shrink the sizes, and say which")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the prompt (default: %(default)s)")
    parser.add_argument("--length", type=int, default=40, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="write into a directory that holds files")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    return guarded(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> int:
    options = {"tiny": args.tiny, "seed": args.seed, "length": args.length, "force": args.force}
    for line in make_reference(args.source, args.out, **options):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
