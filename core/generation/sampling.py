"""How tokens are chosen: the settings of one request, and what values they may have.

``core.generation.processors`` says what each setting does to the logits.

``core.sampling.table`` has the settings' ranges, defaults and stages, and says why the stages have this order.
``order`` changes it, for instance to llama.cpp's. At temperature 0, the likeliest token is taken of those that the
stages before ``temperature`` leave; the stages from there on do nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from core.errors import UsageError
from core.generation.fields import completed, default
from core.sampling.settings import DEFAULT_ORDER, SETTINGS, STAGES, SWITCHES

if TYPE_CHECKING:
    from core.generation.processors.custom import Processor

_TINY_TEMPERATURE = 1e-30  # below it, the noise is lost in the rounding of any logits
HOTTEST = 1e30
"""Temperatures above count as this one: noise would overflow float32, and the draw is uniform long before."""


@dataclass(frozen=True, slots=True)
@completed
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

    temperature: float = default("temperature")
    top_p: float = default("top_p")
    top_k: int = default("top_k")
    seed: int | None = default("seed")
    min_p: float = default("min_p")
    typical_p: float = default("typical_p")
    xtc_probability: float = default("xtc_probability")
    xtc_threshold: float = default("xtc_threshold")
    repetition_penalty: float = default("repetition_penalty")
    presence_penalty: float = default("presence_penalty")
    frequency_penalty: float = default("frequency_penalty")
    penalty_context: int | None = default("penalty_context")
    dry_multiplier: float = default("dry_multiplier")
    dry_base: float = default("dry_base")
    dry_allowed_length: int = default("dry_allowed_length")
    dry_context: int | None = default("dry_context")
    dry_breakers: Sequence[int] = default("dry_breakers")
    logit_bias: Mapping[int, float] = default("logit_bias")
    suppress_tokens: Sequence[int] = default("suppress_tokens")
    begin_suppress_tokens: Sequence[int] = default("begin_suppress_tokens")
    bad_words_ids: Sequence[Sequence[int]] = default("bad_words_ids")
    no_repeat_ngram_size: int = default("no_repeat_ngram_size")
    min_new_tokens: int = default("min_new_tokens")
    min_length: int = default("min_length")
    processors: Sequence[Processor] = default("processors")
    order: Sequence[str] = default("order")

    @property
    def greedy(self) -> bool:
        """Whether no random number is needed."""
        return self.temperature < _TINY_TEMPERATURE

    @property
    def forbids(self) -> bool:
        """Whether there are tokens that may not be chosen."""
        return self.uses("forbidden")

    @property
    def counts_tokens(self) -> bool:
        """Whether what is forbidden depends on the tokens so far."""
        least = self.min_new_tokens or self.min_length
        longer = any(len(word) > 1 for word in self.bad_words_ids)
        return bool(self.begin_suppress_tokens or self.no_repeat_ngram_size or least or longer)

    def uses(self, name: str) -> bool:
        """Whether the stage ``name`` does anything with these settings."""
        if STAGES[name].draws and self.greedy:
            return False
        return any(setting.asks(getattr(self, setting.name)) for setting in SWITCHES[name])

    def checked(self) -> Self:
        """Itself, every value of its type and in its range, with a seed drawn where it needs one.

        Raises:
            UsageError: a value is out of range.
        """
        values = {name: setting.kind.checked(name, getattr(self, name)) for name, setting in SETTINGS.items()}
        whole = replace(self, **values)
        missing = [name for name in DEFAULT_ORDER if name not in whole.order and whole.uses(name)]
        if missing:
            raise UsageError(f"order leaves {', '.join(map(repr, missing))} out, which these settings use")
        return replace(whole, seed=secrets.randbits(32)) if whole.seed is None and not whole.greedy else whole
