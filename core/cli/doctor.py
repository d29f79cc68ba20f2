"""``corelm doctor``: does core work on this machine? A report to paste.

Checks versions, every plugin, every kernel against its reference, and the demo models; says at the end what is wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from core.cli.terminal import clean, fold, put, size
from core.errors import CoreError

if TYPE_CHECKING:
    from core.cli.plugins import ClaimFacts

SUMMARY = "check this installation: versions, plugins, kernels, demo models; a report to paste"
_PROMPT = "To be, or"
_TOKENS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--kernels", action="store_true", help="every case of every kernel, with its errors")


def run(args: argparse.Namespace) -> int:
    """Prints the report as it comes, and returns the exit code: 1 where something is wrong."""
    from core.cli.kernels import check_kernels
    from core.cli.plugins import claim_lines, list_plugins

    problems: list[str] = []
    put(_machine(problems))
    claims = list_plugins(imports=True).claims
    problems += [f"plugin {c.value} for {c.model_type}: {c.error or c.status}" for c in claims if c.is_wrong]
    put(_section("plugins", claim_lines(claims)))
    _import_plugins(claims)
    put(_section("kernels", check_kernels(problems, full=args.kernels)))
    put(_section("demos", list(_demos(problems))))
    put(["", f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "all is well"])
    for problem in problems:
        put(fold("- ", problem))
    return 1 if problems else 0


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)]


def _machine(problems: list[str]) -> Iterator[str]:
    from core.cli.environment import dependencies, environment
    from core.device import memory_limits

    here = environment()
    recommended, available = memory_limits()
    memory = [] if available is None else [size(available)]
    if recommended is not None and recommended != available:
        memory.append(f"{size(recommended)} recommended")
    packages = dependencies()
    problems += [f"package {package}" for package in packages if package.wanted]
    if not packages:
        problems.append("the package corelm is not installed, so its plugins are not found: pip install corelm")
    facts = {
        "core": here.core,
        "plugin API": here.plugin_api,
        "device": ", ".join([here.device, *memory]),
        "python": here.python,
        "system": here.system,
        "packages": ", ".join(map(str, packages)) or "unknown",
        "environment": ", ".join(f"{name}={value}" for name, value in here.variables.items()) or "nothing set",
    }
    for label, text in facts.items():
        yield f"{label:13}{clean(text)}"


def _import_plugins(found: tuple[ClaimFacts, ...]) -> None:
    """Plugins construct their kernels when they are imported. Only those are that a process of their own survived."""
    from core.registry import claims
    from core.registry.importing import import_claim

    sound = {(c.model_type, c.value) for c in found if c.status == "active" and c.error is None}
    for claim in claims():
        if (claim.model_type, claim.value) in sound:
            import_claim(claim)


def _demos(problems: list[str]) -> Iterator[str]:
    from core.checkpoint.source import DEMOS

    names = sorted(path.name for path in DEMOS.iterdir() if (path / "config.json").is_file()) if DEMOS.is_dir() else []
    if not names:
        yield "none: this installation has no demo models"
    for name in names:
        try:
            yield _demo(f"demo:{name}")
        except Exception as error:  # a report of what does not work must itself work
            message = str(error) if isinstance(error, CoreError) else f"{type(error).__name__}: {error}"
            problems.append(f"demo:{name}: {message}")
            yield f"demo:{name}  failed"


def _demo(source: str) -> str:
    import core

    model = core.load(source)
    result = model.generate(_PROMPT, max_tokens=_TOKENS, temperature=0.0)
    if not result.text.strip():
        raise CoreError("the model generates no text", where=source)
    return f"{source}  ok, {result.stats.decode_tps:.0f} tok/s: {clean(_PROMPT + result.text)}"
