"""One step over several caches of one model, as if they were one cache.

A running batch keeps its rows in groups: one ``Cache`` for each class of capacities, so that short sequences do not pay
for a long one. A prompt that is read in the same step has a cache of its own, and many tokens a step. Attention and
state work on each cache; everything else works on all tokens at once, each as a row of one token, so that weights are
read once (Agrawal et al., 2024, Sarathi-Serve).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import mlx.core as mx

from core.errors import CacheError
from core.nn.cache import Cache, State
from core.nn.step import Step, StepPlan


class CacheGroups:
    """Several caches of one model, as one of ``Σ rows * seq`` rows of one token, ordered by cache and then by row.

    Args:
        caches: at least one, all made by the same model.
        seqs: tokens that each row of a cache takes in a step; None: one.
        counts: for each cache, real tokens of each row, the rest being padding; None where there is none.

    Attributes:
        caches, seqs: as given.
    """

    def __init__(
        self,
        caches: Sequence[Cache],
        seqs: Sequence[int] | None = None,
        counts: Sequence[Sequence[int] | None] | None = None,
    ) -> None:
        self.caches = list(caches)
        self.seqs = [1] * len(self.caches) if seqs is None else list(seqs)
        self._counts = [None] * len(self.caches) if counts is None else list(counts)

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row of each cache holds."""
        return [length for cache in self.caches for length in cache.lengths]

    def arrays(self) -> list[mx.array]:
        """Every array held."""
        return [array for cache in self.caches for array in cache.arrays()]

    def plan(self, batch: int, seq: int, blocks: int) -> GroupsPlan:
        """A step of ``seq`` = 1 token a row; called by the decoder. Arguments as for ``StepPlan``."""
        rows = sum(cache.batch * each for cache, each in zip(self.caches, self.seqs, strict=True))
        if (batch, seq) != (rows, 1):
            raise CacheError("tokens and caches disagree", expected=f"[{rows}, 1] tokens", found=f"[{batch}, {seq}]")
        plans = [
            StepPlan(cache.batch, each, blocks, cache, counts)
            for cache, each, counts in zip(self.caches, self.seqs, self._counts, strict=True)
        ]
        return GroupsPlan(plans)

    def commit(self) -> None:
        """Ends the step that ``plan`` started."""
        for cache in self.caches:
            cache.commit()


class GroupsPlan:
    """The plans of several caches as one, in which every token is a row.

    Attributes:
        plans: in the order of the caches.
    """

    def __init__(self, plans: Sequence[StepPlan]) -> None:
        self.plans = plans
        ends = list(itertools.accumulate(plan.batch * plan.seq for plan in plans))
        self._bounds = list(zip([0, *ends], ends, strict=False))
        positions = [start + i for plan in plans for start in plan.starts for i in range(plan.seq)]
        self._positions = mx.array(positions, dtype=mx.int32)
        self._lengths: mx.array | None = None
        if any(plan.counts is not None for plan in plans):
            real = [int(i < count) for plan in plans for count in plan.real for i in range(plan.seq)]
            self._lengths = mx.array(real, dtype=mx.int32)

    def steps(self) -> list[GroupsStep]:
        """The step as each block sees it."""
        each = zip(*(plan.steps() for plan in self.plans), strict=True)
        seqs = [plan.seq for plan in self.plans]
        return [GroupsStep(steps, seqs, self._bounds, self._positions, self._lengths) for steps in each]


class GroupsStep(Step):
    """The step as one block sees it: one token of each row, while each group attends to a cache of its own."""

    __slots__ = ("_bounds", "_seqs", "_steps")

    def __init__(
        self,
        steps: Sequence[Step],
        seqs: Sequence[int],
        bounds: Sequence[tuple[int, int]],
        positions: mx.array,
        lengths: mx.array | None,
    ) -> None:
        self._steps = steps
        self._seqs = seqs
        self._bounds = bounds
        self.positions = positions
        self.lengths = lengths

    @property
    def state(self) -> GroupsState | None:
        """As in ``Step``: reading joins the groups' rows, writing distributes them.

        Raises:
            CacheError: some rows take more than one token, which a state must process one after the other.
        """
        if max(self._seqs) > 1:
            raise CacheError("a block that keeps state cannot take several tokens of a row as rows of their own")
        states = [step.state for step in self._steps]
        return GroupsState([state for state in states if state is not None], self._bounds)

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, window: int | None = None
    ) -> mx.array:
        """As in ``Step``."""
        attended = []
        for step, seq, (first, last) in zip(self._steps, self._seqs, self._bounds, strict=True):
            parts = [_as_rows(array[first:last], seq) for array in (queries, keys, values)]
            attended.append(_as_tokens(step.attend(*parts, scale=scale, window=window)))
        return attended[0] if len(attended) == 1 else mx.concatenate(attended)


class GroupsState(State):
    """The states of several groups of rows as one."""

    def __init__(self, states: Sequence[State], bounds: Sequence[tuple[int, int]]) -> None:
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


def _as_rows(x: mx.array, seq: int) -> mx.array:
    """``[rows * seq, heads, 1, head_dim]`` → ``[rows, heads, seq, head_dim]``."""
    if seq == 1:
        return x
    tokens, heads, _, head_dim = x.shape
    return x.reshape(tokens // seq, seq, heads, head_dim).swapaxes(1, 2)


def _as_tokens(x: mx.array) -> mx.array:
    """``[rows, heads, seq, head_dim]`` → ``[rows * seq, heads, 1, head_dim]``."""
    rows, heads, seq, head_dim = x.shape
    return x if seq == 1 else x.swapaxes(1, 2).reshape(rows * seq, heads, 1, head_dim)
