"""Processors of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from core.errors import ProcessorError
from core.generation.processors.history import History
from core.generation.processors.scores import Scores
from core.generation.processors.stage import Now
from core.generation.sampling import Sampling


@dataclass(frozen=True, slots=True)
class ProcessorContext:
    """What a processor is told of its request.

    Attributes:
        position: of the token to choose, in the sequence that the cache holds.
        generated: tokens chosen so far.
    """

    position: int
    generated: int
    _history: History
    _row: int

    @property
    def history(self) -> mx.array:
        """int32 ``[n]``: the prompt's ids and those chosen so far, on the device.

        The last one is still being computed there: reading it on the host (``.tolist()``, ``.item()``) works, and waits
        for it, so that the device idles meanwhile. Array operations do not wait.
        """
        return self._history.row(self._row)


class Processor(Protocol):
    """Changes the logits of one request; called for every token, whatever else is in the batch.

    It may keep state of its own request. It is called once for each token that is computed, and one is computed ahead:
    the last call's token may never be given out.
    """

    def __call__(self, logits: mx.array, context: ProcessorContext) -> mx.array:
        """New logits, ``[1, vocab]``.

        Args:
            logits: float32 ``[1, vocab]``, not to be changed in place; minus infinity where a token is forbidden.
            context: what came before.
        """


class Custom:
    """Calls every row's own processors."""

    def __init__(self, settings: Sequence[Sampling], vocab_size: int) -> None:
        self._processors = [tuple(row.processors) for row in settings]

    def __call__(self, scores: Scores, now: Now) -> None:
        assert now.history is not None
        logits = scores.logits
        parts: list[mx.array] = []
        for row, processors in enumerate(self._processors):
            part = logits[row : row + 1]
            context = ProcessorContext(now.positions[row], now.history.generated(row), now.history, row)
            for processor in processors:
                part = _called(processor, part, context, row)
            parts.append(part)
        scores.replace(parts[0] if len(parts) == 1 else mx.concatenate(parts))


def _called(processor: Processor, logits: mx.array, context: ProcessorContext, row: int) -> mx.array:
    name = getattr(processor, "__name__", type(processor).__name__)
    try:
        changed = processor(logits, context)
    except Exception as error:
        raise ProcessorError(f"the processor {name!r} failed: {type(error).__name__}: {error}", row=row) from error
    if not isinstance(changed, mx.array) or changed.shape != logits.shape:
        found = f"shape {tuple(changed.shape)}" if isinstance(changed, mx.array) else type(changed).__name__
        expected = f"an array of shape {tuple(logits.shape)}"
        raise ProcessorError(f"the processor {name!r} does not return logits", row=row, expected=expected, found=found)
    return changed.astype(mx.float32)
