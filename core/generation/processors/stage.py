"""What stages have in common: when they are made, and what they are told of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from core.generation.processors.scores import Scores
from core.generation.sampling import Sampling

if TYPE_CHECKING:
    from core.generation.processors.dry import Repetitions
    from core.generation.processors.history import History
    from core.generation.processors.penalties import Counts


@dataclass(frozen=True, slots=True)
class Now:
    """What a step knows beside the logits.

    Attributes:
        positions: of the token to choose, one a row.
        history: every row's tokens; None where no row needs them. So are the others.
        counts: how often each token occurred.
        repetitions: what the last tokens repeat.
    """

    positions: Sequence[int]
    history: History | None = None
    counts: Counts | None = None
    repetitions: Repetitions | None = None


class Stage(Protocol):
    """One entry of an order, for all rows; made anew when a row joins or leaves.

    Args:
        settings: one a row; neutral where the row has nothing to do with this stage.
    """

    def __init__(self, settings: Sequence[Sampling], vocab_size: int) -> None: ...

    def __call__(self, scores: Scores, now: Now) -> None:
        """Changes the scores."""
