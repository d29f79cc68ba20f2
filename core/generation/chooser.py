"""The next token of each row of a batch, chosen from logits; rows join and leave at any step.

With equal logits, a row's ids are the same bit for bit whatever else is in the batch: its random numbers depend on its
seed and the token's position, and a stage that other rows ask for leaves it unchanged. Nothing here waits for the
device.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from core.errors import UsageError
from core.generation.fields import token_ids
from core.generation.processors.dry import Repetitions
from core.generation.processors.history import History
from core.generation.processors.noise import gumbel
from core.generation.processors.penalties import Counts
from core.generation.processors.pipeline import Pipeline
from core.generation.processors.scores import Scores, column
from core.generation.processors.stage import Now
from core.generation.sampling import HOTTEST, Sampling
from core.sampling.settings import DEFAULT_ORDER, STAGES


class Choice(NamedTuple):
    """What was chosen, still to be computed.

    Attributes:
        ids: uint32 ``[rows]``.
        logprobs: float32 ``[rows]``, of the ids in the model's own distribution, before any setting; None where no row
            asked. So are the others.
        top_ids, top_logprobs: uint32 and float32 ``[rows, n]``, the likeliest tokens, falling, where n is the most that
            any row asked for; None where that is 0.
    """

    ids: mx.array
    logprobs: mx.array | None = None
    top_ids: mx.array | None = None
    top_logprobs: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        """All there are, for evaluation."""
        held = (self.ids, self.logprobs, self.top_ids, self.top_logprobs)
        return [array for array in held if array is not None]


class Chooser:
    """Chooses for the rows of a batch.

    Args:
        vocab_size: width of the logits.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._rows: list[Sampling] = []
        self._used: list[frozenset[str]] = []
        self._logprobs: list[int | None] = []
        self._eos: list[Collection[int]] = []
        self._history: History | None = None
        self._counts: Counts | None = None
        self._repetitions: Repetitions | None = None
        self._plan()

    def __len__(self) -> int:
        """Rows."""
        return len(self._rows)

    def join(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        logprobs: int | None = None,
        eos: Collection[int] = (),
    ) -> None:
        """Appends a row.

        Args:
            sampling: ``checked``.
            prompt_ids: what the request begins with: what penalties and processors look back on.
            logprobs: also compute the log-probabilities of the chosen token and of this many of the likeliest.
            eos: ids that end the answer, for the settings that forbid that.

        Raises:
            UsageError: an id that the vocabulary has not, or a bad number of log-probabilities. After any error, no row
                is added.
        """
        check_request(sampling, prompt_ids, logprobs, self.vocab_size)
        before = _held(self)
        try:
            self._join(sampling, prompt_ids, logprobs, eos)
        except Exception:  # of the device
            self.__dict__ = before
            raise

    def _join(self, sampling: Sampling, prompt_ids: Sequence[int], logprobs: int | None, eos: Collection[int]) -> None:
        self._make_room(sampling)
        self._rows.append(sampling)
        self._used.append(frozenset(name for name in DEFAULT_ORDER if sampling.uses(name)))
        self._logprobs.append(logprobs)
        self._eos.append([token for token in eos if 0 <= token < self.vocab_size])
        capacity = 0
        if self._history is not None:
            self._history.join(prompt_ids)
            capacity = self._history.tokens.shape[1]
        if self._counts is not None:
            self._counts.join(prompt_ids if sampling.uses("penalties") else (), sampling.penalty_context)
        if self._repetitions is not None:
            uses = sampling.uses("dry")
            self._repetitions.join(prompt_ids if uses else (), sampling.dry_breakers if uses else (), capacity)
        self._plan()

    def leave(self, row: int) -> None:
        """Removes a row; later ones move up.

        Raises:
            UsageError: there is no such row.
        """
        if not 0 <= row < len(self._rows):
            raise UsageError("there is no such row to leave", expected=f"0 to {len(self._rows) - 1}", found=row)
        del self._rows[row], self._used[row], self._logprobs[row], self._eos[row]
        for state in (self._history, self._counts, self._repetitions):
            if state is not None:
                state.leave(row)
        self._drop_unused()
        self._plan()

    def choose(self, logits: mx.array, positions: Sequence[int]) -> Choice:
        """Chooses a token for each row, and records it.

        Where all rows are greedy and nothing changes their logits, this is one argmax.

        Args:
            logits: ``[rows, vocab]``, any float dtype. NaN is never chosen, except by that one argmax, which does not
                look for it. Where nothing is possible, the id is 0.
            positions: of the tokens to choose, one a row.

        Raises:
            UsageError: another number of rows.
            ProcessorError: a user's own processor failed; nothing is recorded, and the error names the row.
        """
        if logits.shape != self._shape or len(positions) != self._shape[0]:
            expected = f"logits [{len(self._rows)}, {self.vocab_size}] and as many positions"
            found = f"{list(logits.shape)} and {len(positions)}"
            raise UsageError("logits do not fit the rows that have joined", expected=expected, found=found)
        ids = mx.argmax(logits, axis=-1) if self._plain else self._drawn(logits, positions)
        if self._bare:
            return Choice(ids)
        if self._stateful:
            ids = self._record(ids)
        return Choice(ids) if self._most_logprobs is None else self._with_logprobs(logits, ids)

    def processed(self, logits: mx.array, positions: Sequence[int]) -> mx.array:
        """What ``choose`` would draw from: float32 ``[rows, vocab]``, minus infinity where a token is hidden.

        Not divided by the temperature, which only changes what is hidden, and how tokens are drawn. Arguments and
        errors are those of ``choose``.
        """
        scores = Scores(logits)
        self._pipeline(scores, Now(positions, self._history, self._counts, self._repetitions))
        return scores.logits

    def _plan(self) -> None:
        """Whatever follows from the rows alone."""
        rows = self._rows
        self._shape = (len(rows), self.vocab_size)
        self._pipeline = Pipeline(rows, self._used, self.vocab_size, self._eos)
        self._noisy = any(not row.greedy for row in rows)
        self._plain = not self._noisy and self._pipeline.empty
        self._stateful = any(state is not None for state in (self._history, self._counts, self._repetitions))
        self._most_logprobs = max((n for n in self._logprobs if n is not None), default=None)
        self._bare = not self._stateful and self._most_logprobs is None
        self._seeds = [row.seed or 0 for row in rows]
        if self._noisy:
            self._temperature = column([0.0 if row.greedy else min(row.temperature, HOTTEST) for row in rows])

    def _drawn(self, logits: mx.array, positions: Sequence[int]) -> mx.array:
        scores = self.processed(logits, positions)
        if not self._noisy:
            return mx.argmax(scores, axis=-1)
        noise = gumbel(self._seeds, positions, self.vocab_size)
        # Noise times the temperature, not logits divided by it: a row at 0 is then greedy, exactly.
        return mx.argmax(scores + noise * self._temperature, axis=-1)

    def _record(self, ids: mx.array) -> mx.array:
        """The same ids; whoever computes them computes the states too, which would otherwise grow a chain of steps."""
        states: list[mx.array] = []
        if self._counts is not None:
            self._counts.record(ids, self._history)
            states.append(self._counts.array)
        if self._history is not None:
            if self._repetitions is not None:
                self._repetitions.record(ids, self._history)
            self._history.record(ids)
            states.append(self._history.tokens)
            if self._repetitions is not None:
                self._repetitions.fit(self._history.tokens.shape[1])
                states.append(self._repetitions.lengths)
        return mx.depends([ids], states)[0]

    def _with_logprobs(self, logits: mx.array, ids: mx.array) -> Choice:
        logits = logits.astype(mx.float32)
        total = mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen = (mx.take_along_axis(logits, ids[:, None], axis=-1) - total)[:, 0]
        count = self._most_logprobs
        if not count:
            return Choice(ids, chosen)
        top = mx.argpartition(-logits, kth=min(count, self.vocab_size - 1), axis=-1)[:, :count]
        values = mx.take_along_axis(logits, top, axis=-1)
        falling = mx.argsort(-values, axis=-1)
        top, values = mx.take_along_axis(top, falling, axis=-1), mx.take_along_axis(values, falling, axis=-1)
        return Choice(ids, chosen, top, values - total)

    def _make_room(self, sampling: Sampling) -> None:
        """States that the new row is the first to need; rows before it get blanks, which nobody reads."""
        penalties, dry = sampling.uses("penalties"), sampling.uses("dry")
        bounded = penalties and sampling.penalty_context is not None
        looks_back = any(stage.history and sampling.uses(stage.name) for stage in STAGES.values())
        if self._history is None and (bounded or looks_back or sampling.counts_tokens):
            self._history = History()
            for _ in self._rows:
                self._history.join(())
        if self._counts is None and penalties:
            self._counts = Counts(self.vocab_size)
            for _ in self._rows:
                self._counts.join((), None)
        if self._repetitions is None and dry:
            assert self._history is not None
            self._repetitions = Repetitions(self.vocab_size)
            for _ in self._rows:
                self._repetitions.join((), (), self._history.tokens.shape[1])

    def _drop_unused(self) -> None:
        """States that no row that is left needs."""
        used = frozenset[str]().union(*self._used)
        if "penalties" not in used:
            self._counts = None
        if "dry" not in used:
            self._repetitions = None
        penalised = (row for row, names in zip(self._rows, self._used, strict=True) if "penalties" in names)
        bounded = any(row.penalty_context is not None for row in penalised)
        counted = any(row.counts_tokens for row in self._rows)
        if not (bounded or counted or any(STAGES[name].history for name in used)):
            self._history = None


def _held(thing: Chooser | History | Counts | Repetitions) -> dict[str, Any]:
    """What it consists of, to go back to; arrays are replaced and never written to, so these are not copied."""
    held = dict(vars(thing))
    for name, value in held.items():
        if isinstance(value, list):
            held[name] = list(value)
        elif isinstance(value, History | Counts | Repetitions):
            held[name] = copy.copy(value)
            held[name].__dict__ = _held(value)
    return held


def check_request(sampling: Sampling, prompt_ids: Sequence[int], logprobs: int | None, vocab_size: int) -> None:
    """Whether a row may join, before anything is computed for it.

    Raises:
        UsageError: an id that the vocabulary has not, or a bad number of log-probabilities.
    """
    for name, ids in (*token_ids(sampling), ("the prompt", prompt_ids)):
        if len(ids) and not 0 <= min(ids) <= max(ids) < vocab_size:
            wrong = next(item for item in ids if not 0 <= item < vocab_size)
            raise UsageError(f"id {wrong} in {name} is not in the vocabulary", expected=f"0 to {vocab_size - 1}")
    if logprobs is not None and (type(logprobs) is not int or not 0 <= logprobs <= vocab_size):
        raise UsageError("logprobs is out of range", expected=f"0 to {vocab_size}, or None", found=repr(logprobs))
    if sampling.seed is None and not sampling.greedy:
        raise UsageError("these settings have no seed", hint="Call .checked() on them first.")
