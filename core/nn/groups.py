"""One step over several caches of one model, as if they were one.

A batch that runs keeps its rows in groups: one ``Cache`` for each class of capacities, so that one long sequence does
not make short ones pay. Everything but attention and state works on all rows at once. Knows caches and steps; knows no
request and no token.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import mlx.core as mx

from core.errors import CacheError
from core.nn.cache import Cache, State
from core.nn.step import Step, StepPlan


class CacheGroups:
    """Several caches of one model, as one: the rows of the first, then those of the second, and so on.

    Args:
        caches: at least one, all made by the same model.
    """

    def __init__(self, caches: Sequence[Cache]) -> None:
        self.caches = list(caches)

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return [length for cache in self.caches for length in cache.lengths]

    def arrays(self) -> list[mx.array]:
        """Every array held."""
        return [array for cache in self.caches for array in cache.arrays()]

    def plan(self, batch: int, seq: int, blocks: int, counts: Sequence[int] | None = None) -> GroupsPlan:
        """A step of ``seq`` tokens a row; the decoder calls it. Arguments as of ``StepPlan``."""
        return GroupsPlan(self.caches, batch, seq, blocks, counts)

    def commit(self) -> None:
        """Ends the step that ``plan`` started."""
        for cache in self.caches:
            cache.commit()


class GroupsPlan:
    """One ``StepPlan`` for each group of rows; arguments as of ``CacheGroups.plan``."""

    def __init__(
        self, caches: Sequence[Cache], batch: int, seq: int, blocks: int, counts: Sequence[int] | None
    ) -> None:
        ends = list(itertools.accumulate(cache.batch for cache in caches))
        if not ends or ends[-1] != batch:
            raise CacheError(
                "tokens and caches disagree on the batch", expected=f"{ends[-1:]} rows", found=f"{batch} rows"
            )
        self._bounds = list(zip([0, *ends], ends, strict=False))
        self._positions = mx.array([length for cache in caches for length in cache.lengths], dtype=mx.int32)
        self._lengths = None if counts is None else mx.array(list(counts), dtype=mx.int32)
        self._plans = [
            StepPlan(cache.batch, seq, blocks, cache, None if counts is None else counts[first:last])
            for cache, (first, last) in zip(caches, self._bounds, strict=True)
        ]

    def steps(self) -> list[GroupsStep]:
        """The step as each block sees it."""
        each = zip(*(plan.steps() for plan in self._plans), strict=True)
        return [GroupsStep(steps, self._bounds, self._positions, self._lengths) for steps in each]


class GroupsStep(Step):
    """The step as one block sees it: one step of all rows, although each group attends to a cache of its own."""

    __slots__ = ("_bounds", "_steps")

    def __init__(
        self, steps: Sequence[Step], bounds: list[tuple[int, int]], positions: mx.array, lengths: mx.array | None
    ) -> None:
        self._steps = steps
        self._bounds = bounds
        self.positions = positions
        self.lengths = lengths

    @property
    def state(self) -> GroupsState | None:
        """As of ``Step``: reading joins the groups' rows, writing deals them out."""
        states = [step.state for step in self._steps]
        return GroupsState([state for state in states if state is not None], self._bounds)

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, window: int | None = None
    ) -> mx.array:
        """As of ``Step``."""
        return mx.concatenate(
            [
                step.attend(queries[first:last], keys[first:last], values[first:last], scale=scale, window=window)
                for step, (first, last) in zip(self._steps, self._bounds, strict=True)
            ]
        )


class GroupsState(State):
    """The states of several groups of rows as one."""

    def __init__(self, states: Sequence[State], bounds: list[tuple[int, int]]) -> None:
        self._states = states
        self._bounds = bounds

    def __getitem__(self, name: str) -> mx.array:
        return mx.concatenate([state[name] for state in self._states])

    def __setitem__(self, name: str, value: mx.array) -> None:
        for state, (first, last) in zip(self._states, self._bounds, strict=True):
            state[name] = value[first:last]

    def arrays(self) -> list[mx.array]:
        """The arrays held, group by group."""
        return [array for state in self._states for array in state.arrays()]
