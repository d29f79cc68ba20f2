"""Options of commands that generate: how tokens are chosen, when it ends, how much a cache may keep.

Knows the names that ``LanguageModel.stream`` gives them. Only what was asked for is passed on, so that the checkpoint's
own settings hold for the rest.
"""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import re
from typing import TYPE_CHECKING, Any

from core.cli.options import natural
from core.errors import UsageError

if TYPE_CHECKING:
    from core.generation import Sampling

_ESCAPES = re.compile(r"\\[nrt\\]")
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "xtc_probability",
    "xtc_threshold",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "penalty_context",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_context",
    "dry_breakers",
    "logit_bias",
    "order",
    "seed",
)
_CACHE = ("max_kv_tokens", "kv_bits", "kv_group_size")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen; the destinations are the fields of ``Sampling``."""
    group = parser.add_argument_group("sampling", "the defaults are the checkpoint's own, else the likeliest token")
    add = group.add_argument
    add("--temperature", "-t", type=float, metavar="T", help="0 takes the likeliest token")
    add("--top-k", type=int, metavar="K", help="choose among the K likeliest; 0 means all")
    add("--top-p", type=float, metavar="P", help="choose among the likeliest, up to this probability")
    add("--min-p", type=float, metavar="P", help="choose among those at least P times as likely as the likeliest")
    add(
        "--typical-p", type=float, metavar="P", help="choose among those of typical information, up to this probability"
    )
    add("--xtc-probability", type=float, metavar="P", help="how often the likeliest above the threshold are left out")
    add(
        "--xtc-threshold", type=float, metavar="P", help="tokens above it, the least likely of them aside, are left out"
    )
    add("--repetition-penalty", type=float, metavar="X", help="divides the logits of tokens that have been; 1 is none")
    add("--presence-penalty", type=float, metavar="X", help="subtracted from the logit of a token that has been")
    add("--frequency-penalty", type=float, metavar="X", help="subtracted for each time that a token has been")
    add("--penalty-context", type=natural, metavar="N", help="penalties look at the last N tokens only")
    add("--dry-multiplier", type=float, metavar="X", help="penalty of going on with a repeated sequence (DRY)")
    add("--dry-base", type=float, metavar="X", help="factor of that penalty for each token more")
    add("--dry-allowed-length", type=natural, metavar="N", help="sequences up to this length may be repeated")
    add("--dry-context", type=natural, metavar="N", help="DRY looks at the last N tokens only")
    add("--dry-breakers", type=_ids, metavar="IDS", help="token ids that end a sequence for DRY, with commas between")
    add("--logit-bias", type=_bias, metavar="ID=X", action="append", help="adds X to a token's logit; may be repeated")
    add("--order", type=_names, metavar="NAMES", help="the order of all this, as names with commas between")
    add("--seed", "-s", type=int, metavar="S", help="repeat a generation")


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

    given = {name: value for name in _SAMPLING if (value := getattr(args, name)) is not None}
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
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


def _ids(text: str) -> tuple[int, ...]:
    return tuple(natural(word) for word in text.split(",") if word.strip())


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _bias(text: str) -> tuple[int, float]:
    token_id, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"is to be ID=X, for instance 42=-5: {text}")
    return natural(token_id), float(value)
