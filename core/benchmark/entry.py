"""``bench``: a checkpoint or a shape into runs and figures. Knows the order of a benchmark, and who takes turns."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

import core
from core.benchmark.bandwidth import copy_bandwidth
from core.benchmark.measure import Run, run_once, speed
from core.benchmark.peer import PeerProcess, check_peer
from core.benchmark.result import SCHEMA, Benchmark, Length, Machine, Peer, Ratio
from core.benchmark.settings import Settings, prompt
from core.benchmark.shapes import Shape
from core.benchmark.subject import Measured, from_checkpoint, from_shape
from core.device import describe
from core.errors import UsageError

Progress = Callable[[int, int], None]
"""Called with the runs done so far and in all."""

_WARM_UP = 16  # new tokens of the run that is not counted
_LOADS = 3
_CHANGE_WEIGHTS = ("quantize", "dequantize", "approximate")


def bench(
    source: str | os.PathLike[str] | Shape,
    *,
    prompt_tokens: Sequence[int] | None = None,
    generate: int = 128,
    iterations: int = 10,
    against: str | None = None,
    progress: Progress | None = None,
    **loading: Any,
) -> Benchmark:
    """Measures how fast a model loads, reads prompts and generates: one sequence, greedily.

    A checkpoint is loaded three times, or ``iterations`` times where that is less. Before the counted runs of each
    prompt length, a short one compiles what is to be compiled. With a peer, the two sides take turns, run by run, each
    in a process of its own with its own copy of the weights; ratios are of neighbours in time.

    Args:
        source: as for ``core.load``, or a shape to fill with random weights.
        prompt_tokens: lengths of prompts; None takes 32, 512, 2,048 and 8,192, as far as the model was made for them.
        generate: new tokens of each run.
        iterations: counted runs of each length.
        against: ``"mlx-lm"`` or ``"transformers"`` (bfloat16 only), which must be installed, or None.
        progress: called with the runs done so far and in all.
        loading: options of ``core.load``; of them, a shape takes ``dtype``.

    Raises:
        UsageError: a setting out of range.
        BenchmarkError: the peer is not installed, or fails.
        CoreError: whatever ``core.load`` raises.
    """
    settings = Settings.checked(prompt_tokens, generate, iterations)
    if against is not None:
        check_peer(against)
        changed = [name for name in _CHANGE_WEIGHTS if loading.get(name)]
        if changed:
            raise UsageError(
                f"{changed[0]} would change the weights on our side only",
                hint=f"Convert first, or leave {against} out.",
            )
    with contextlib.ExitStack() as stack:
        # First of all: some systems count in a process's memory what the one that started it held.
        peer = None if against is None else stack.enter_context(PeerProcess(against))
        if isinstance(source, Shape):
            measured = from_shape(source, peer, loading.get("dtype"))
        else:
            measured = from_checkpoint(source, peer, min(iterations, _LOADS), loading)
        machine = _machine()
        lengths, notes = settings.fitting(measured.limit)
        found = []
        for place, length in enumerate(lengths):
            done = place * iterations
            if progress is not None:
                progress(done, len(lengths) * iterations)
            found.append(_length(measured, machine, peer, length, settings))
        if progress is not None:
            progress(len(lengths) * iterations, len(lengths) * iterations)
        return Benchmark(
            schema=SCHEMA,
            subject=measured.subject,
            machine=machine,
            loading=measured.loading,
            iterations=iterations,
            generate=generate,
            lengths=tuple(found),
            peer=None if peer is None else _peer(peer, measured),
            notes=notes,
        )


def _length(
    measured: Measured, machine: Machine, peer: PeerProcess | None, prompt_tokens: int, settings: Settings
) -> Length:
    """The runs of one prompt length."""
    ids, generate = prompt(prompt_tokens, measured.model.vocab_size), settings.generate
    ours: list[Run] = []
    theirs: list[Run] = []
    for number in range(settings.iterations + 1):
        count = min(generate, _WARM_UP) if number == 0 else generate
        ours.append(run_once(measured.model, ids, count))
        if peer is not None:
            theirs.append(peer.run(ids, count))
    mine = speed(ours[1:], prompt_tokens, generate)
    other = speed(theirs[1:], prompt_tokens, generate) if theirs else None
    # The steps after the first token: the first of them attends to the prompt and itself, and so on.
    context = prompt_tokens + generate // 2
    step_bytes = measured.step_bytes(context)
    limit = machine.bandwidth.median / step_bytes
    return Length(
        prompt_tokens=prompt_tokens,
        context=context,
        step_bytes=step_bytes,
        decode_limit=limit,
        fraction=mine.decode.median / limit,
        speed=mine,
        peer=other,
        ratio=None if other is None else Ratio(mine.prefill.over(other.prefill), mine.decode.over(other.decode)),
    )


def _machine() -> Machine:
    bandwidth, how = copy_bandwidth()
    return Machine(
        device=describe(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        core=core.__version__,
        mlx=importlib.metadata.version("mlx"),
        bandwidth=bandwidth,
        bandwidth_how=how,
    )


def _peer(peer: PeerProcess, measured: Measured) -> Peer:
    mine, theirs = measured.loading, measured.peer_loading
    ratio = None if mine is None or theirs is None else mine.seconds.over(theirs.seconds)
    return Peer(name=peer.name, version=peer.version, loading=theirs, load_ratio=ratio)
