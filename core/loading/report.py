"""``LoadReport``: what a load did, as data and as text."""

from __future__ import annotations

from dataclasses import dataclass

from core.registry import Claim
from core.weights import Plan


@dataclass(frozen=True)
class LoadReport:
    """What a load did; ``str`` gives it as text.

    Attributes:
        plan: which tensors went where, and everything that was left unread.
        claim: the plugin's claim; shadowed: other claims of the type.
        device: what the model was loaded onto.
        stray_files: weight files of the checkpoint that are not part of the model.
        seconds: how long reading the weights took; 0 for a lazy load.
        weight_error: the largest error of a weight caused by ``approximate``; None without it.
    """

    plan: Plan
    claim: Claim
    device: str
    stray_files: tuple[str, ...] = ()
    shadowed: tuple[str, ...] = ()
    seconds: float = 0.0
    weight_error: float | None = None

    def __str__(self) -> str:
        plan = self.plan
        lines = [
            f"{plan.source}: {plan.model_type}, loaded by {plan.plugin}, layout {plan.layout}",
            f"  {plan.parameters:,} parameters, {plan.bytes:,} bytes, computes in {plan.precision} on {self.device}",
        ]
        if plan.unread_keys:
            lines.append(f"  config keys that were not read: {', '.join(plan.unread_keys)}")
        if plan.ignored:
            lines.append(f"  tensors left unread: {len(plan.ignored)}")
        if self.stray_files:
            lines.append(f"  files that are not part of the model: {', '.join(self.stray_files)}")
        if self.shadowed:
            lines.append(f"  other claims of {plan.model_type}: {'; '.join(self.shadowed)}")
        if self.weight_error is not None:
            lines.append(f"  largest error of a weight by approximate=True: {self.weight_error:.3g}")
        return "\n".join(lines + [f"  {note}" for note in plan.notes])
