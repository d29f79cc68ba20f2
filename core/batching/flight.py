"""``Flight``: a decode step that the device has been given and the host has not read yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from core.batching.row import Row
from core.generation import Token
from core.generation.chooser import Choice


@dataclass(frozen=True, slots=True)
class Flight:
    """One step of all rows.

    Attributes:
        choice: the chosen tokens, in the order of ``rows``.
        rows: the rows when the step was made; some may have ended since.
        prompt_tokens: prompt tokens processed with the step, or right before it; None where the step's duration must
            not be counted.
    """

    choice: Choice
    rows: list[Row]
    prompt_tokens: int | None

    def read(self) -> Iterator[tuple[Row, Token]]:
        """Waits for the step, and yields each row with its token."""
        choice = self.choice
        ids: Any = choice.ids.tolist()
        logprobs, top_ids, top_logprobs = (
            _listed(array) for array in (choice.logprobs, choice.top_ids, choice.top_logprobs)
        )
        for index, row in enumerate(self.rows):
            if row.logprobs is None:
                yield row, Token(ids[index])
                continue
            top: tuple[tuple[int, float], ...] = ()
            if row.logprobs:
                pairs = zip(top_ids[index], top_logprobs[index], strict=True)
                top = tuple(pairs)[: row.logprobs]
            yield row, Token(ids[index], logprobs[index], top)


def _listed(array: mx.array | None) -> Any:
    return None if array is None else array.tolist()
