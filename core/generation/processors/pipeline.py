"""The stages of a batch, in the orders that its rows ask for.

Rows with different orders go through one pass for each order, in which the others are neutral.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Collection, Sequence

from core.generation.processors.forbidden import Forbidden
from core.generation.processors.scores import Scores
from core.generation.processors.stage import Now, Stage
from core.generation.sampling import Sampling
from core.sampling.settings import STAGES

_NEUTRAL = Sampling()


class Pipeline:
    """What one step does to the logits of all rows.

    Args:
        settings: checked, one a row.
        used: the entries of an order that the settings use, one set a row.
        eos: ids that end each row's answer.
    """

    def __init__(
        self,
        settings: Sequence[Sampling],
        used: Sequence[Collection[str]],
        vocab_size: int,
        eos: Sequence[Collection[int]],
    ) -> None:
        names: dict[Sequence[str], set[str]] = {}
        for row, uses in zip(settings, used, strict=True):
            names.setdefault(tuple(row.order), set()).update(uses)
        passes = [
            _stages(order, found, [row if row.order == order else _NEUTRAL for row in settings], vocab_size)
            for order, found in names.items()
        ]
        self._passes = [stages for stages in passes if stages]
        self._forbidden = Forbidden(settings, eos, vocab_size) if any(row.forbids for row in settings) else None

    @property
    def empty(self) -> bool:
        """Whether the logits stay as they are."""
        return not self._passes and self._forbidden is None

    def __call__(self, scores: Scores, now: Now) -> None:
        """Changes the scores."""
        if self._forbidden is not None:
            self._forbidden(scores, now)
        for stages in self._passes:  # a temperature that a pass leaves behind is 1 for the rows of the next
            for stage in stages:
                stage(scores, now)


def _stages(order: Sequence[str], names: Collection[str], settings: Sequence[Sampling], vocab_size: int) -> list[Stage]:
    used = [name for name in order if name in names]
    # A temperature counts only for what comes after it.
    if "temperature" in used and not any(STAGES[name].probabilities for name in used[used.index("temperature") :]):
        used.remove("temperature")
    return [_processor(name)(settings, vocab_size) for name in used]


@functools.cache
def _processor(name: str) -> type[Stage]:
    module, _, found = str(STAGES[name].processor).partition(":")
    processor: type[Stage] = getattr(importlib.import_module(module), found)
    return processor
