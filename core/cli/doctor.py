"""``corelm doctor``: does core work on this machine? A report to paste.

Checks versions, every plugin, every kernel that has a source for this device against its reference, the demo models and
those that are named, and says which of them the fast decode step serves; at the end, what is wrong.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from core.cli.terminal import clean, fold, put, size
from core.errors import CoreError, InstallationError, UsageError

if TYPE_CHECKING:
    from core import LanguageModel
    from core.cli.plugins import ClaimFacts

SUMMARY = "check this installation: versions, plugins, kernels, models; a report to paste"
_PROMPT = "To be, or"
_TOKENS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("sources", metavar="MODEL", nargs="*", help="try this model, too, beside the demos")
    parser.add_argument("--kernels", action="store_true", help="every case of every kernel, with its errors")


def run(args: argparse.Namespace) -> int:
    """Prints the report as it comes, and returns the exit code: 1 where something is wrong."""
    from core.cli.plugins import claim_lines, list_plugins

    problems: list[str] = []
    computes = _has_mlx(problems)
    put(_machine(problems, computes))
    claims = list_plugins(imports=computes).claims
    problems += [f"{_name(claim)}: {claim.error or claim.status}" for claim in claims if claim.is_wrong]
    put(_section("plugins", claim_lines(claims)))
    if computes:
        _import_plugins(claims)
        put(_section("kernels", _kernels(problems, full=args.kernels)))
        tried = list(dict.fromkeys([*_demos(), *args.sources]))
        steps: list[str] = []
        put(_section("models", list(_models(tried, steps, problems))))
        put(_section("fast decode step", steps or ["not used: there is no model to use it for"]))
        if left := _left_to_mlx():
            put(_section("kernels that MLX compiles itself, in every process", left))
    else:
        put(_section("kernels, models, fast decode step", ["not tried, as MLX cannot be imported"]))
    put(["", f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "all is well"])
    for problem in problems:
        put(fold("- ", problem))
    return 1 if problems else 0


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)]


def _has_mlx(problems: list[str]) -> bool:
    """Whether MLX can be imported; what is wrong with its packages is added to ``problems``."""
    from core.installation import check_mlx, conflict, unused_gpu

    try:
        check_mlx()
    except InstallationError as error:
        problems.append(str(error))
        return False
    problems += filter(None, (conflict(), unused_gpu()))
    return True


def _memory() -> list[str]:
    from core.device import memory_limits

    recommended, available = memory_limits()
    memory = [] if available is None else [size(available)]
    if recommended is not None and recommended != available:
        memory.append(f"{size(recommended)} recommended")
    return memory


def _cpu_library(problems: list[str]) -> str:
    """The level in use, and why none that is better; an installation without any is slower, and in order."""
    from core.cpu.library import library_status

    try:
        status = library_status()
    except CoreError as error:
        problems.append(str(error))
        return "none"
    problems += status.problems
    return str(status)


def _blas(problems: list[str]) -> str:
    """What multiplies matrices on the CPU and how fast; that it is slow for want of a package is a problem."""
    from core import blas
    from core.blas.measure import gigaflops

    try:
        blas.check()
    except UsageError as error:
        problems.append(str(error))
    found = blas.status()
    if found is None:
        return ""
    if not found.used and found.hint is not None:
        problems.append(f"matrix products are slow, because {found.reason}. {found.hint}")
    return f"{found} ({gigaflops():,.0f} GFLOP/s in float32)"


def _machine(problems: list[str], computes: bool) -> Iterator[str]:
    from core.cli.environment import dependencies, environment

    here = environment()
    memory = _memory() if computes else []
    packages = dependencies()
    problems += [f"package {package}" for package in packages if package.wanted]
    if not packages:
        problems.append("the package corelm is not installed, so its plugins are not found: pip install corelm")
    facts = {
        "core": here.core,
        "plugin API": here.plugin_api,
        "device": ", ".join([here.device, *memory]),
        "CPU library": _cpu_library(problems),
        "BLAS": _blas(problems) if computes else "",
        "python": here.python,
        "system": here.system,
        "packages": ", ".join(map(str, packages)) or "unknown",
        "environment": ", ".join(f"{name}={value}" for name, value in here.variables.items()) or "nothing set",
    }
    for label, text in facts.items():
        if text:
            yield f"{label:13}{clean(text)}"


def _name(claim: ClaimFacts) -> str:
    """How a problem names what is wrong: where the metadata cannot be read, nobody knows what it claims."""
    if claim.model_type == "?":
        return f"package {claim.distribution}"
    return f"plugin {claim.value} for {claim.model_type}"


def _import_plugins(found: tuple[ClaimFacts, ...]) -> None:
    """Plugins construct their kernels when they are imported. Only those are that a process of their own survived."""
    from core.registry import claims
    from core.registry.importing import import_claim

    sound = {(c.model_type, c.value) for c in found if c.status == "active" and c.error is None}
    for claim in claims():
        if (claim.model_type, claim.value) in sound:
            import_claim(claim)


def _kernels(problems: list[str], *, full: bool) -> list[str]:
    """The check of the kernels. Where none of their sources runs, there is nothing to compare with a reference."""
    from core.cli.kernels import check_kernels
    from core.kernels import registered_kernels
    from core.kernels.device import current_device

    if full or current_device() is not None:
        return check_kernels(problems, full=full)
    count = len(registered_kernels())
    return [
        f"no fused source runs on this device: all {count} kernels use their references, in plain MLX "
        "(--kernels runs these in every dtype)"
    ]


def _left_to_mlx() -> list[str]:
    """Kernels that ran above and could not be compiled before their use, and why; they are right, and start slowly."""
    from core.kernels.device import current_device

    compiler = getattr(current_device(), "compiler", None)
    failures = {} if compiler is None else compiler.failures
    return [clean(f"{name}: {why.strip().partition(chr(10))[0]}") for name, why in failures.items()]


def _demos() -> list[str]:
    from core.checkpoint.source import DEMOS

    return sorted(f"demo:{path.name}" for path in DEMOS.glob("*") if (path / "config.json").is_file())


def _models(sources: list[str], steps: list[str], problems: list[str]) -> Iterator[str]:
    """What became of each model; what the fast decode step has to say of it is appended to ``steps``."""
    if not any(source.startswith("demo:") for source in sources):
        yield "no demos: this installation has none"
    for source in sources:
        try:
            yield _try(source, steps)
        except Exception as error:  # a report of what does not work must itself work
            message = str(error) if isinstance(error, CoreError) else f"{type(error).__name__}: {error}"
            problems.append(f"{source}: {message}")
            yield f"{source}  failed"


def _try(source: str, steps: list[str]) -> str:
    import core

    model = core.load(source)
    result = model.generate(_PROMPT, max_tokens=_TOKENS, temperature=0.0)
    if not result.text.strip():
        raise CoreError("the model generates no text", where=source)
    step = _fast_step(source, model)
    steps += [] if step in steps else [step]
    return f"{source}  ok, {result.stats.decode_tps:.0f} tok/s: {clean(_PROMPT + result.text)}"


def _fast_step(source: str, model: LanguageModel) -> str:
    """Whether the fast decode step serves the model, and if not, why; the same line for all where it is the device."""
    try:
        from core.fast import device_reason, fast_step, reason
    except ImportError:
        return "not used: this installation is without core.fast"
    from core.generation import generate_tokens

    why = device_reason()
    if why is not None:
        return f"not used: {why}"
    cache = model.model.make_cache()
    list(generate_tokens(model.model, [1], max_tokens=1, cache=cache))
    why = reason(model.model, cache)
    if why is not None:
        return f"{source}  not used: {why}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = fast_step(model.model, cache)
    if step is None:
        return f"{source}  not used: " + (str(caught[-1].message) if caught else "its check has failed before")
    step.close()
    return f"{source}  used, and agrees with the ordinary path"
