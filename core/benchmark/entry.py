"""``bench``: runs the benchmark of a checkpoint or a shape. It decides the order of runs, and in which turns peers
run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.benchmark.bandwidth import memory_bandwidth
from core.benchmark.measure import Run, run_once, speed
from core.benchmark.peer import PeerProcess
from core.benchmark.peer_kinds import check_peer
from core.benchmark.result import SCHEMA, Benchmark, Length, Machine, Peer, Ratio
from core.benchmark.settings import Settings, prompt
from core.benchmark.shapes import Shape
from core.benchmark.subject import Measured, from_checkpoint, from_shape
from core.device import describe
from core.errors import UsageError
from core.version import __version__

Progress = Callable[[int, int], None]
"""Called with the number of runs done so far, and the total."""

_WARM_UP = 16  # new tokens of the run that does not count
_LOADS = 3
_CHANGE_WEIGHTS = ("quantize", "dequantize", "approximate")


def bench(
    source: str | os.PathLike[str] | Shape,
    *,
    prompt_tokens: Sequence[int] | None = None,
    generate: int = 128,
    iterations: int = 10,
    against: str | Sequence[str] | None = None,
    progress: Progress | None = None,
    **loading: Any,
) -> Benchmark:
    """Measures how fast a model loads, reads prompts and generates: one sequence, greedily.

    A checkpoint is loaded three times, or ``iterations`` times if that is less. Before the counted runs of each prompt
    length, a short run compiles the kernels. With peers, all sides take turns, run by run, each in a process of its own
    with its own copy of the weights. A ratio compares runs that follow each other.

    Args:
        source: as for ``core.load``, or a shape to fill with random weights.
        prompt_tokens: lengths of prompts; None takes 32, 512, 2,048 and 8,192, up to the model's context.
        generate: new tokens of each run.
        iterations: counted runs of each length.
        against: one or several peers, which must be installed: ``"mlx-lm"``, ``"transformers"``, ``"llama.cpp"`` (on
            the CPU). The last two take a format of their weights after a colon, whatever format ours have:
            ``"transformers:float32"`` (default bfloat16), ``"llama.cpp:Q4_0"`` (default BF16, Q8_0 or Q4_0, by our
            bits).
        progress: called with the number of runs done so far, and the total.
        loading: options of ``core.load``; of them, a shape takes ``dtype``.

    Raises:
        UsageError: a setting out of range.
        BenchmarkError: the peer is not installed, or fails.
        CoreError: any error of ``core.load``.
    """
    settings = Settings.checked(prompt_tokens, generate, iterations)
    names = _names(against, loading)
    with contextlib.ExitStack() as stack:
        # Before anything else: some systems count the memory of the parent process as the child's.
        peers = [stack.enter_context(PeerProcess(name)) for name in names]
        if isinstance(source, Shape):
            measured = from_shape(source, peers, loading.get("dtype"))
        else:
            measured = from_checkpoint(source, peers, min(iterations, _LOADS), loading)
        machine = _machine()
        lengths, notes = settings.fitting(measured.limit)
        found = []
        for place, length in enumerate(lengths):
            done = place * iterations
            if progress is not None:
                progress(done, len(lengths) * iterations)
            found.append(_length(measured, machine, peers, length, settings))
        if progress is not None:
            progress(len(lengths) * iterations, len(lengths) * iterations)
        others = _peers(peers, measured)
        return Benchmark(
            schema=SCHEMA,
            subject=measured.subject,
            machine=machine,
            loading=measured.loading,
            iterations=iterations,
            generate=generate,
            lengths=tuple(found),
            peer=others[0] if others else None,
            notes=notes,
            peers=others,
        )


def _names(against: str | Sequence[str] | None, loading: Mapping[str, Any]) -> tuple[str, ...]:
    """The peers to measure, each checked before anything is loaded."""
    names = () if against is None else (against,) if isinstance(against, str) else tuple(against)
    if len(set(names)) < len(names):
        raise UsageError("a peer is named twice", found=", ".join(names))
    changed = [option for option in _CHANGE_WEIGHTS if loading.get(option)]
    for name in names:
        if check_peer(name).format is None and changed:
            raise UsageError(
                f"{changed[0]} would change the weights on our side only",
                hint=f"Convert first, leave {name} out, or name a format of its own, as in transformers:bfloat16.",
            )
    return names


def _length(
    measured: Measured, machine: Machine, peers: Sequence[PeerProcess], prompt_tokens: int, settings: Settings
) -> Length:
    """The runs of one prompt length."""
    ids, generate = prompt(prompt_tokens, measured.model.vocab_size), settings.generate
    ours: list[Run] = []
    theirs: list[list[Run]] = [[] for _ in peers]
    for number in range(settings.iterations + 1):
        count = min(generate, _WARM_UP) if number == 0 else generate
        ours.append(run_once(measured.model, ids, count))
        for runs, peer in zip(theirs, peers, strict=True):
            runs.append(peer.run(ids, count))
    mine = speed(ours[1:], prompt_tokens, generate)
    others = tuple(speed(runs[1:], prompt_tokens, generate) for runs in theirs)
    ratios = tuple(Ratio(mine.prefill.over(other.prefill), mine.decode.over(other.decode)) for other in others)
    # The steps after the first token: the first of them attends to the prompt and itself, the next to one token more.
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
        peer=others[0] if others else None,
        ratio=ratios[0] if ratios else None,
        peers=others,
        ratios=ratios,
    )


def _machine() -> Machine:
    bandwidth, how = memory_bandwidth()
    return Machine(
        device=describe(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        core=__version__,
        mlx=importlib.metadata.version("mlx"),
        bandwidth=bandwidth,
        bandwidth_how=how,
    )


def _peers(peers: Sequence[PeerProcess], measured: Measured) -> tuple[Peer, ...]:
    found = []
    for place, peer in enumerate(peers):
        loading, ratio = None, None
        if measured.loading is not None:
            loading = measured.peer_loadings[place]
            ratio = measured.loading.seconds.over(loading.seconds)
        found.append(Peer(peer.name, peer.version, loading, ratio, peer.weights))
    return tuple(found)
