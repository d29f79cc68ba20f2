"""Compares a model with a reference block by block, and names the first block whose output differs.

    python -m core.testing.diff PATH REFERENCE

If the reference has no hidden states, only the logits are compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import core.needs_mlx  # noqa: F401

# isort: split
import mlx.core as mx
import mlx.nn as nn

from core.errors import CheckpointError
from core.nn import Decoder
from core.testing.command import guarded
from core.testing.comparing import difference, number
from core.testing.reference_data import Reference

TOLERANCE = 3e-5


@dataclass(frozen=True)
class Stage:
    """One array within the forward pass of a model.

    Attributes:
        name: ``input of block 0``, ``block 0``, …, ``logits``.
        error: the largest difference, in units of the largest value expected.
        position: the first token that departs; None if none does.
    """

    name: str
    error: float
    position: int | None


@dataclass(frozen=True)
class Difference:
    """A model and a reference compared, stage by stage; ``str`` names the first stage that departs.

    Attributes:
        stages: in the order in which they are computed.
        detailed: whether the reference has hidden states; else only the logits are compared.
        tolerance: the largest allowed error.
    """

    stages: tuple[Stage, ...]
    detailed: bool
    tolerance: float

    @property
    def first(self) -> Stage | None:
        """The first stage that departs; None where all agree."""
        return next((stage for stage in self.stages if stage.position is not None), None)

    def __str__(self) -> str:
        width = max(len(stage.name) for stage in self.stages)
        lines = [f"{stage.name:<{width}}  {stage.error:.2e}{self._mark(stage)}" for stage in self.stages]
        if not self.detailed:
            lines.append("no hidden states: core.testing.reference writes them, and this then names the block")
        return "\n".join([*lines, self._verdict()])

    def _mark(self, stage: Stage) -> str:
        return "" if stage.position is None else f"  departs from position {stage.position} on"

    def _verdict(self) -> str:
        first = self.first
        if first is None:
            return "no departure"
        if not self.detailed:
            return f"the logits depart, by {first.error:.2e} of the largest"
        if first.name == "logits":
            return "all blocks agree and the logits depart: look at the final norm and the language head"
        if first is self.stages[0]:
            return "the blocks' input departs: look at the embedding (a scale, a norm, the order of rows)"
        late = "" if first.position == 0 else " (not at the start: look at positions, mask and window)"
        return f"{first.name} is the first to depart, by {first.error:.2e} of its largest value{late}"


class _Recorder(nn.Module):
    """A block that stores its input and output."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self._seen: list[mx.array] = []

    def __call__(self, x: mx.array, step: Any) -> mx.array:
        y: mx.array = self.block(x, step)
        self._seen[:] = [x, y]
        return y


def hidden_states(model: Decoder, tokens: mx.array) -> tuple[list[mx.array], mx.array]:
    """The first block's input and every block's output, ``[batch, seq, hidden]`` each, and the logits."""
    blocks = model.layers
    recorders = [_Recorder(block) for block in blocks]
    model.layers = list(recorders)
    try:
        logits = model(tokens)
        mx.eval(logits)
    finally:
        model.layers = blocks
    return [recorders[0]._seen[0], *(recorder._seen[1] for recorder in recorders)], logits


def diff(model: Decoder, reference: Reference | Path, *, tolerance: float = TOLERANCE) -> Difference:
    """Compares a model with a reference on its prompt, block by block where the reference has hidden states.

    Args:
        model: with the reference's weights, in float32.
        reference: or the directory it is in.
        tolerance: allowed difference, in units of the largest value.

    Raises:
        CheckpointError: the reference cannot be read, or has another number of blocks.
    """
    if isinstance(reference, Path):
        reference = Reference.read(reference)
    states, logits = hidden_states(model, reference.arrays["input_ids"][None])
    theirs = reference.arrays.get("hidden_states")
    stages = []
    if theirs is not None:
        if theirs.shape[0] != len(states):
            raise CheckpointError(
                "the reference has hidden states of another number of blocks",
                where=reference.path,
                expected=len(states) - 1,
                found=theirs.shape[0] - 1,
            )
        names = ["input of block 0", *(f"block {index}" for index in range(len(states) - 1))]
        stages = [_stage(name, one, other, tolerance) for name, one, other in zip(names, states, theirs, strict=True)]
    stages.append(_stage("logits", logits, reference.arrays["logits"][None], tolerance))
    return Difference(tuple(stages), theirs is not None, tolerance)


def _stage(name: str, found: mx.array, expected: mx.array, tolerance: float) -> Stage:
    error = difference(found, expected)
    if error <= tolerance:
        return Stage(name, error, None)
    if found.shape != expected.shape:
        return Stage(name, error, 0)
    wide, theirs = found.astype(mx.float32), expected.astype(mx.float32)
    allowed = tolerance * mx.max(mx.abs(theirs))
    departs = mx.any(~(mx.abs(wide - theirs) <= allowed), axis=(0, 2))
    return Stage(name, error, int(number(mx.argmax(departs))))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints where a checkpoint's model departs from a reference; 1 if it does."""
    parser = argparse.ArgumentParser(
        prog="python -m core.testing.diff", description="Compare a model with a reference, block by block."
    )
    parser.add_argument("path", metavar="PATH", help="a checkpoint, as for core.load")
    parser.add_argument("reference", metavar="REFERENCE", type=Path, help="a directory with reference.npz, or the file")
    parser.add_argument("--plugin", metavar="P", help="distribution or module that loads it")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="default: %(default)s of the largest value")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    return guarded(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> int:
    import core

    reference = Reference.read(args.reference)
    lm = core.load(args.path, plugin=args.plugin, tokenizer=False, dtype=mx.float32)
    found = diff(lm.model, reference, tolerance=args.tolerance)
    print(found)
    quantized = any(entry.quantization is not None for entry in lm.report.plan.entries)
    if quantized and found.first is not None:
        print("the checkpoint is quantized: its weights are not the reference's")
    return 0 if found.first is None else 1


if __name__ == "__main__":
    sys.exit(main())
