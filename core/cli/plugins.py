"""Every claim to a model type: who makes it, where it lies, whether it serves and why not.

The fields of ``PluginList`` are the JSON that ``corelm inspect --plugins --json`` prints. Reads package metadata;
imports plugins only when asked to, and each in a process of its own, so that a broken one is a line and not an end.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.cli.environment import Environment, environment
from core.cli.inspection import SCHEMA
from core.cli.locate import locate
from core.cli.probe import probe
from core.cli.terminal import cell, clean, fold, table
from core.registry import Claim, claims, status


@dataclass(frozen=True)
class PluginList:
    """The claims of an environment."""

    schema: int
    environment: Environment
    claims: tuple[ClaimFacts, ...]


@dataclass(frozen=True)
class ClaimFacts:
    """One claim.

    Attributes:
        model_type: the type; ``*`` for a fallback, which is asked when nobody claims a type; ``?`` where the metadata
            cannot be read.
        tier: ``registered``, ``builtin``, ``installed``, ``bundled`` or ``fallback``; earlier ones win.
        distribution, version: the package; value: the module; file: of the module, null when it is not there.
        status: ``active``, or why it does not serve.
        seconds: how long importing it took; null where it was not imported.
        error: why importing it failed, or how it breaks the contract.
    """

    model_type: str
    tier: str
    distribution: str | None
    version: str | None
    value: str
    file: str | None
    status: str
    seconds: float | None = None
    error: str | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether somebody has to act: it is broken, cannot be used, or is in conflict. Blocked on purpose is fine."""
        return self.error is not None or self.status.startswith(("unusable", "in conflict"))


def list_plugins(*, imports: bool = False) -> PluginList:
    """All claims; with ``imports``, each that is neither blocked nor unusable is imported and checked."""
    found = claims()
    return PluginList(SCHEMA, environment(), tuple(_facts(claim, found, imports) for claim in found))


def plugin_lines(found: PluginList) -> list[str]:
    """The listing, as text."""
    here = found.environment
    return [
        f"core {here.core}, plugin API {here.plugin_api}, MLX {here.mlx}, Python {here.python}",
        f"{clean(here.system)}, {clean(here.device)}",
        *(f"{name}={clean(value)}" for name, value in here.variables.items()),
        "",
        *claim_lines(found.claims),
    ]


def claim_lines(found: tuple[ClaimFacts, ...]) -> list[str]:
    """The table of claims; what is wrong with one stands below it."""
    if not found:
        return ["no plugin is installed, not even the built-in ones: the package corelm is not installed"]
    imported = any(claim.seconds is not None or claim.error for claim in found)
    header = ["TYPE", "TIER", "PACKAGE", "VERSION", "MODULE", *(["IMPORT"] if imported else []), "STATUS"]
    rows = [header, *(_row(claim, imported) for claim in found)]
    lines = table(rows)
    shown = lines[:1]
    for claim, line in zip(found, lines[1:], strict=True):
        shown.append(line)
        shown.append(f"  {clean(claim.file) if claim.file else 'its module is not there'}")
        if claim.error is not None:
            shown += [f"  {part}" for part in fold("error: ", claim.error).split("\n")]
    return shown


def _facts(claim: Claim, found: list[Claim], imports: bool) -> ClaimFacts:
    state = status(claim, found)
    asked = imports and not claim.blocked and claim.fault is None
    outcome = probe(claim) if asked else None
    file = locate(claim)
    return ClaimFacts(
        model_type=claim.model_type,
        tier=claim.tier,
        distribution=claim.distribution,
        version=claim.version,
        value=claim.value,
        file=None if file is None else str(file),
        status=state,
        seconds=None if outcome is None else outcome.seconds,
        error=None if outcome is None else outcome.error,
    )


def _row(claim: ClaimFacts, imported: bool) -> list[str]:
    columns = [claim.model_type, claim.tier, claim.distribution or "", claim.version or "", claim.value]
    time = "" if claim.seconds is None else f"{claim.seconds:.2f}s"
    outcome = [cell("failed" if claim.error else time)] if imported else []
    return [*map(cell, columns), *outcome, clean(claim.status)]
