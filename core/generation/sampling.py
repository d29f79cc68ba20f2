"""How tokens are chosen: the settings of one request, and what values they may have.

``core.generation.processors`` says what each setting does to the logits.

The order, and why it is the default:

1. ``logit_bias``, ``penalties`` (repetition, frequency, presence), ``dry``: what changes logits, on the model's own
   scale. transformers and llama.cpp agree on this place and order (transformers has no DRY; it follows llama.cpp).
2. ``processors``: the user's own, which then see what the settings above made of the logits.
3. ``temperature``. The two disagree: transformers scales before it truncates, llama.cpp after. Settings that come with
   a checkpoint (``generation_config.json``) were chosen for transformers, so its order is the default.
4. ``top_k``, ``top_p``, ``min_p``, ``typical_p``: in this order in transformers, each on what the one before left.
5. ``xtc``: last, on what the truncations left, as in llama.cpp.

What is forbidden (``suppress_tokens`` and the like) is so before all that, and stays so. ``order`` changes the order,
for instance to llama.cpp's. At temperature 0, the likeliest token that 1 and 2 leave is taken, and 3 to 5 do nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from core.errors import UsageError
from core.generation.ranges import bias, callables, counts, ids, numbers, shown, words

if TYPE_CHECKING:
    from core.generation.processors.custom import Processor

DEFAULT_ORDER = (
    "logit_bias",
    "penalties",
    "dry",
    "processors",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "xtc",
)
"""The names that ``Sampling.order`` is made of, in the default order."""

_TINY_TEMPERATURE = 1e-30  # below it, the noise is lost in the rounding of any logits
HOTTEST = 1e30
"""Temperatures above count as this one: noise would overflow float32, and the draw is uniform long before."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one request are chosen. At its default value, every setting does nothing.

    Attributes:
        temperature: divisor of the logits; 0 takes the likeliest token.
        top_p: keep the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        seed: of the random numbers; None draws one. They depend on it and on the token's position alone.
        min_p: keep tokens of at least this share of the likeliest one's probability; 0 keeps all.
        typical_p: keep the tokens whose surprise is closest to the expected one, up to this probability; 1 keeps all.
        xtc_probability: how often, for each token, all likely choices but the least likely of them are excluded.
        xtc_threshold: the probability that makes a choice likely, for XTC.
        repetition_penalty: divisor of the positive logits of tokens that occurred, factor of the negative; 1 does
            nothing.
        presence_penalty: subtracted from the logits of tokens that occurred.
        frequency_penalty: the same, times how often they occurred.
        penalty_context: the last tokens, of prompt and output, that the three penalties look at; None: all.
        dry_multiplier: penalty of a token that would extend a repetition of ``dry_allowed_length`` tokens; 0 is off.
        dry_base: the penalty grows by this factor with each further token of the repetition.
        dry_allowed_length: tokens that may repeat without a penalty for the next.
        dry_context: the last tokens, of prompt and output, in which repetitions are looked for; None: all.
        dry_breakers: ids of tokens that no repetition goes across.
        logit_bias: id → what is added to its logit; ``-inf`` forbids it.
        suppress_tokens: ids that are never chosen.
        begin_suppress_tokens: ids that are not chosen first.
        bad_words_ids: sequences of ids that do not come up whole. A lone id that ends answers is left out of them.
        no_repeat_ngram_size: no sequence of so many tokens, of prompt and output, comes up twice; 0 allows all.
        min_new_tokens: no id that ends the answer is chosen before there are so many tokens.
        min_length: the same, the prompt's tokens included.
        processors: the user's own, applied in turn (``core.generation.Processor``).
        order: the names of ``DEFAULT_ORDER``, in the order wanted. Names of settings that do nothing may be left out.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_context: int | None = None
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_context: int | None = None
    dry_breakers: Sequence[int] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    bad_words_ids: Sequence[Sequence[int]] = ()
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    min_length: int = 0
    processors: Sequence[Processor] = ()
    order: Sequence[str] = DEFAULT_ORDER

    @property
    def greedy(self) -> bool:
        """Whether no random number is needed."""
        return self.temperature < _TINY_TEMPERATURE

    @property
    def forbids(self) -> bool:
        """Whether there are tokens that may not be chosen."""
        return bool(self.suppress_tokens or self.bad_words_ids or self.counts_tokens)

    @property
    def counts_tokens(self) -> bool:
        """Whether what is forbidden depends on the tokens so far."""
        least = self.min_new_tokens or self.min_length
        longer = any(len(word) > 1 for word in self.bad_words_ids)
        return bool(self.begin_suppress_tokens or self.no_repeat_ngram_size or least or longer)

    def uses(self, name: str) -> bool:
        """Whether the entry ``name`` of an order does anything with these settings."""
        return _DOES[name](self) and not (name in _OF_CHANCE and self.greedy)

    def checked(self) -> Self:
        """Itself, every value of its type and in its range, with a seed drawn where it needs one.

        Raises:
            UsageError: a value is out of range.
        """
        values: dict[str, Any] = {**numbers(self), **counts(self)}
        values["logit_bias"] = bias(self.logit_bias)
        for name in ("dry_breakers", "suppress_tokens", "begin_suppress_tokens"):
            values[name] = ids(name, getattr(self, name))
        values["bad_words_ids"] = words("bad_words_ids", self.bad_words_ids)
        values["processors"] = callables(self.processors)
        values["order"] = _order(self.order)
        whole = replace(self, **values)
        missing = [name for name in DEFAULT_ORDER if name not in whole.order and whole.uses(name)]
        if missing:
            raise UsageError(f"order leaves {', '.join(map(repr, missing))} out, which these settings use")
        return replace(whole, seed=secrets.randbits(32)) if whole.seed is None and not whole.greedy else whole


_OF_CHANCE = ("temperature", "top_k", "top_p", "min_p", "typical_p", "xtc")
_DOES: dict[str, Callable[[Sampling], bool]] = {
    "logit_bias": lambda it: bool(it.logit_bias),
    "penalties": lambda it: it.repetition_penalty != 1 or it.presence_penalty != 0 or it.frequency_penalty != 0,
    "dry": lambda it: it.dry_multiplier != 0,
    "processors": lambda it: bool(it.processors),
    "temperature": lambda it: it.temperature != 1,
    "top_k": lambda it: it.top_k != 0,
    "top_p": lambda it: it.top_p != 1,
    "min_p": lambda it: it.min_p != 0,
    "typical_p": lambda it: it.typical_p != 1,
    "xtc": lambda it: it.xtc_probability != 0,
}


def _order(names: Any) -> tuple[str, ...]:
    order = [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    unknown = [name for name in order if name not in DEFAULT_ORDER]
    if unknown or isinstance(names, str):
        expected = ", ".join(DEFAULT_ORDER)
        raise UsageError("order is a list of processors' names", expected=expected, found=shown((unknown or order)[0]))
    if len(set(order)) != len(order):
        twice = next(name for name in order if order.count(name) > 1)
        raise UsageError(f"order names {twice!r} twice")
    return tuple(order)
