"""Tokens that may not come next: those that a request forbids, and those that would end it too early or repeat.

The settings are transformers' (``SuppressTokens…``, ``NoBadWords…``, ``NoRepeatNGram…``, ``MinLength…``). Those that
look back see the prompt too. No other setting makes a forbidden token possible again, so this comes before any order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import mlx.core as mx

from core.generation.processors.history import History
from core.generation.processors.scores import Scores, column
from core.generation.processors.stage import Now
from core.generation.sampling import Sampling

_ANY = -2  # no id, and not what a history has behind its end


class Forbidden:
    """Hides every row's forbidden tokens.

    Args:
        settings: one a row.
        eos: ids that end each row's answer; ``bad_words_ids`` leaves them alone, as in transformers.
    """

    def __init__(self, settings: Sequence[Sampling], eos: Sequence[Collection[int]], vocab_size: int) -> None:
        self._rows = list(settings)
        self._vocab_size = vocab_size
        words = [
            [word for word in row.bad_words_ids if not (len(word) == 1 and word[0] in ends)]
            for row, ends in zip(settings, eos, strict=True)
        ]
        single = [[word[0] for word in own if len(word) == 1] for own in words]
        always = [[*row.suppress_tokens, *own] for row, own in zip(settings, single, strict=True)]
        self._always = self._mask(always)
        self._first = self._mask([row.begin_suppress_tokens for row in settings])
        bounded = [row.min_new_tokens > 0 or row.min_length > 0 for row in settings]
        self._ends = self._mask([ends if least else () for ends, least in zip(eos, bounded, strict=True)])
        self._words = [(row, word) for row, own in enumerate(words) for word in own if len(word) > 1]
        longest = max((len(word) - 1 for _, word in self._words), default=0)
        begun = [[_ANY] * (longest - len(word) + 1) + list(word[:-1]) for _, word in self._words]
        self._begun = mx.array(begun, dtype=mx.int32)
        self._word_rows = mx.array([row for row, _ in self._words], dtype=mx.int32)
        self._word_ends = mx.array([word[-1] for _, word in self._words], dtype=mx.int32)
        self._sizes: dict[int, list[int]] = {}
        for place, row in enumerate(settings):
            if row.no_repeat_ngram_size:
                self._sizes.setdefault(row.no_repeat_ngram_size, []).append(place)

    def __call__(self, scores: Scores, now: Now) -> None:
        hidden = [] if self._always is None else [self._always]
        history = now.history
        if history is not None:
            hidden += self._counted(history)
            if self._words:
                hidden.append(self._completing(history))
            for size, rows in self._sizes.items():
                if size <= max(history.lengths[row] for row in rows):
                    hidden.append(self._repeating(history, size, rows))
        for mask in hidden:
            scores.hide(mask)

    def _counted(self, history: History) -> list[mx.array]:
        """What is forbidden at the first token, and before there are enough."""
        found = []
        generated = [history.generated(row) for row in range(len(self._rows))]
        if self._first is not None and 0 in generated:
            found.append(self._first & column([count == 0 for count in generated], mx.bool_))
        if self._ends is not None:
            early = [
                new < row.min_new_tokens or length < row.min_length
                for row, new, length in zip(self._rows, generated, history.lengths, strict=True)
            ]
            if any(early):
                found.append(self._ends & column(early, mx.bool_))
        return found

    def _completing(self, history: History) -> mx.array:
        """The last token of each forbidden word, where the history ends with all the tokens before it."""
        length = self._begun.shape[1]
        places = column([history.lengths[row] - length for row, _ in self._words], mx.int32) + mx.arange(length)
        tail = mx.take_along_axis(history.tokens[self._word_rows], mx.maximum(places, 0), axis=1)
        same = ((tail == self._begun) & (places >= 0)) | (self._begun == _ANY)
        return self._marked(self._word_rows, self._word_ends, same.all(axis=1))

    def _repeating(self, history: History, size: int, rows: list[int]) -> mx.array:
        """The tokens that would complete a sequence of so many tokens that has been before."""
        index = mx.array(rows, dtype=mx.int32)
        tokens = history.tokens[index]
        lengths = column([history.lengths[row] for row in rows], mx.int32)
        count = tokens.shape[1] - size + 1
        same = mx.arange(count, dtype=mx.int32) + (size - 1) < lengths
        for place in range(size - 1):
            last = mx.take_along_axis(tokens, mx.maximum(lengths - (size - 1) + place, 0), axis=1)
            same = same & (tokens[:, place : place + count] == last)
        return self._marked(index[:, None], mx.maximum(tokens[:, size - 1 :], 0), same)

    def _marked(self, rows: mx.array, ids: mx.array, values: mx.array) -> mx.array:
        """bool ``[rows, vocab]``: where any of the values is true."""
        blank = mx.zeros((len(self._rows), self._vocab_size), dtype=mx.int32)
        return blank.at[rows, ids].maximum(values.astype(mx.int32)) > 0

    def _mask(self, ids: Sequence[Collection[int]]) -> mx.array | None:
        """bool ``[rows, vocab]``, true at each row's ids; None where there are none."""
        places = [(row, token) for row, own in enumerate(ids) for token in own]
        if not places:
            return None
        rows, tokens = (mx.array(list(part), dtype=mx.int32) for part in zip(*places, strict=True))
        return self._marked(rows, tokens, mx.ones(rows.shape, dtype=mx.int32))
