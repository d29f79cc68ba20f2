"""Times the runs of our side: from calling ``core.generate_tokens`` to the last token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from core.benchmark.result import Speed, Spread
from core.generation import generate_tokens
from core.nn import Decoder


@dataclass(frozen=True, slots=True)
class Run:
    """One generation.

    Attributes:
        first_token: seconds from asking until the first new token was there.
        decode: seconds from the first new token to the last.
        peak_memory: bytes, the most that MLX held.
    """

    first_token: float
    decode: float
    peak_memory: int


def run_once(model: Decoder, ids: Sequence[int], generate: int) -> Run:
    """Generates exactly ``generate`` tokens, greedily."""
    mx.synchronize()
    mx.reset_peak_memory()
    started = time.perf_counter()
    first = last = started
    for count, _ in enumerate(generate_tokens(model, ids, max_tokens=generate)):
        last = time.perf_counter()
        if count == 0:
            first = last
    mx.synchronize()
    return Run(first - started, last - first, mx.get_peak_memory())


def speed(runs: Sequence[Run], prompt_tokens: int, generate: int) -> Speed:
    """The figures of some runs."""
    return Speed(
        first_token=Spread.of(run.first_token for run in runs),
        prefill=Spread.of(prompt_tokens / run.first_token for run in runs),
        decode=Spread.of((generate - 1) / run.decode for run in runs),
        peak_memory=max(run.peak_memory for run in runs),
    )
