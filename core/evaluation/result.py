"""``Evaluation``: the figures over all scored tokens.

The fields are the JSON that ``corelm evaluate --json`` prints. While ``schema`` is the same, later versions may add
fields, but not rename or remove any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What was evaluated.

    Attributes:
        source: as it was loaded; model_type: its architecture.
        quantization: settings of the quantized matrices, as text; ``none`` where there are none.
        compute_dtype: of the activations, as the load decided; device: where they were computed.
    """

    source: str
    model_type: str
    quantization: str
    compute_dtype: str
    device: str


@dataclass(frozen=True, slots=True)
class Divergence:
    """The divergence of a model's predictions from a reference model's: ``KL(reference ‖ model)`` in nats, by token.

    Attributes:
        reference: the other model.
        mean, median, p95, p99, max: over the scored tokens; percentiles interpolate linearly.
        top1_agreement: share of the tokens for which both predict the same most likely one.
    """

    reference: ModelSummary
    mean: float
    median: float
    p95: float
    p99: float
    max: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
        schema: version of this format.
        model: what was evaluated.
        tokens: scored tokens.
        nats_per_token: their mean loss.
        standard_error: of that mean over tokens, as if they were independent; None for a single token.
        perplexity: ``exp(nats_per_token)``; infinite where that overflows.
        bits_per_byte: loss of all scored tokens over the UTF-8 bytes of the text that they stand for, which makes
            models with different tokenizers comparable; None where the text was given as ids.
        bytes: those bytes.
        context, stride, windows: how the text was read.
        seconds, tokens_per_second: the time it took, the reference model's included; scored tokens in a second.
        divergence: from a reference model; None without one.
    """

    schema: int
    model: ModelSummary
    tokens: int
    nats_per_token: float
    standard_error: float | None
    perplexity: float
    bits_per_byte: float | None
    bytes: int | None
    context: int
    stride: int
    windows: int
    seconds: float
    tokens_per_second: float
    divergence: Divergence | None = None


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error; None for a single value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)


def perplexity_of(nats: float) -> float:
    """``exp(nats)``."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def divergence_of(values: Sequence[float], agreements: int, reference: ModelSummary) -> Divergence:
    """The figures of single tokens' divergences."""
    ordered = sorted(values)
    return Divergence(
        reference=reference,
        mean=math.fsum(ordered) / len(ordered),
        median=_percentile(ordered, 50),
        p95=_percentile(ordered, 95),
        p99=_percentile(ordered, 99),
        max=ordered[-1],
        top1_agreement=agreements / len(ordered),
    )


def _percentile(ordered: Sequence[float], percent: int) -> float:
    place, rest = divmod((len(ordered) - 1) * percent, 100)
    if rest == 0:
        return ordered[place]
    return ordered[place] + (ordered[place + 1] - ordered[place]) * rest / 100
