"""Options of commands that generate: how tokens are chosen, when it ends, how much a cache may keep.

Only what was asked for is passed on, so that the checkpoint's own settings hold for the rest.
"""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.cli.options import natural
from core.errors import UsageError
from core.sampling.kinds import Bias, Count, Ids, Kind, Number, Order
from core.sampling.settings import SETTINGS

if TYPE_CHECKING:
    from core.generation import Sampling

_ESCAPES = re.compile(r"\\[nrt\\]")
_CACHE = ("max_kv_tokens", "kv_bits", "kv_group_size")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen; the destinations are the fields of ``Sampling``."""
    group = parser.add_argument_group("sampling", "the defaults are the checkpoint's own, else the likeliest token")
    for name, setting in SETTINGS.items():
        if (flag := setting.flag) is not None:
            names = [f"--{name.replace('_', '-')}", *([flag.short] if flag.short else [])]
            action = "append" if isinstance(setting.kind, Bias) else "store"
            group.add_argument(*names, type=_reader(setting.kind), metavar=flag.metavar, action=action, help=flag.help)


def add_ending_options(parser: argparse.ArgumentParser, default: str) -> None:
    """When a generation ends.

    Args:
        default: how many tokens are generated where ``--max-tokens`` is not given, in words.
    """
    group = parser.add_argument_group("ending")
    group.add_argument(
        "--max-tokens", "-n", type=natural, metavar="N", help=f"generate at most N tokens (default: {default})"
    )
    group.add_argument(
        "--stop",
        type=_unescaped,
        action="append",
        metavar="TEXT",
        help=r"end before this text; may be repeated; \n and \t are a line end and a tab, \\ a backslash",
    )


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """How much a cache may keep, and how."""
    group = parser.add_argument_group("cache")
    group.add_argument("--max-kv-tokens", type=natural, metavar="N", help="keep the keys and values of N tokens only")
    group.add_argument("--kv-bits", type=natural, metavar="BITS", help="quantize keys and values: 8 or 4 bits")
    group.add_argument("--kv-group-size", type=natural, metavar="N", help="numbers that share a scale, with --kv-bits")


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling that was asked for, checked.

    Raises:
        UsageError: a value is out of range.
    """
    from core.generation import Sampling

    given: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        if setting.flag is not None and (value := getattr(args, name)) is not None:
            given[name] = dict(value) if isinstance(setting.kind, Bias) else value
    Sampling(**given).checked()
    return given


def stream_options(args: argparse.Namespace) -> dict[str, Any]:
    """All that was asked for, as ``LanguageModel.stream`` takes it.

    Raises:
        UsageError: a value is out of range.
    """
    given = sampling_options(args)
    for name in ("max_tokens", "stop", *_CACHE):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    if "" in given.get("stop", ()):
        raise UsageError("--stop with an empty text would end everything at once")
    if "kv_group_size" in given and "kv_bits" not in given:
        raise UsageError("--kv-group-size has no meaning without --kv-bits")
    return given


def described(sampling: Sampling) -> str:
    """Settings in a few words: the main ones, and those that are not what they are by default."""
    main = "greedy"
    if sampling.temperature:
        main = f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, top_k {sampling.top_k}"
    more = []
    for field in dataclasses.fields(sampling):
        value = getattr(sampling, field.name)
        # Numbers only: of the others there is no short form.
        if field.name not in ("temperature", "top_p", "top_k", "seed") and isinstance(value, int | float):
            more.append("" if value == field.default else f", {field.name} {value:g}")
    return main + "".join(more) + (f", seed {sampling.seed}" if sampling.temperature else "")


def _unescaped(text: str) -> str:
    return _ESCAPES.sub(lambda match: codecs.decode(match.group(), "unicode_escape"), text)


def _reader(kind: Kind) -> Callable[[str], Any]:
    """What makes a value of the kind out of a word of the command line."""
    match kind:
        case Number():
            return float
        case Count():
            return natural if kind.least else int
        case Ids():
            return _ids
        case Bias():
            return _bias
        case Order():
            return _names
    raise TypeError(f"the command line reads no {type(kind).__name__}")


def _ids(text: str) -> tuple[int, ...]:
    return tuple(natural(word) for word in text.split(",") if word.strip())


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _bias(text: str) -> tuple[int, float]:
    token_id, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"is to be ID=X, for instance 42=-5: {text}")
    return natural(token_id), float(value)
