"""What a request asks for: a prompt and the options of a stream, checked. Knows models and tokenizers; no schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.generation import Sampling
from core.generation.loop import _checked_ids
from core.language_model import LanguageModel

if TYPE_CHECKING:
    from core.text import NativeTokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request, checked.

    Attributes:
        prompt_ids: at least one.
        eos: ids that end the answer.
        tokenizer: of the text; None where there are only ids.
    """

    prompt_ids: list[int]
    max_tokens: int
    sampling: Sampling
    eos: frozenset[int]
    tokenizer: Tokenizer | NativeTokenizer | None = None
    logprobs: int | None = None


def wanted(model: Any, prompt: Any, options: Mapping[str, Any]) -> Wanted:
    """Checks a prompt and its options.

    Args:
        model: a ``LanguageModel``, or a ``Decoder``, whose prompts are ids.
    """
    options = dict(options)
    if isinstance(model, LanguageModel):
        ids = model.encode(prompt, tools=options.pop("tools", None))
        max_tokens = options.pop("max_tokens", None)
        if max_tokens is None:
            max_tokens = model._default("max_new_tokens", int, 256)
        sampling = model.sampling(**options)
        return Wanted(
            _checked_ids(ids, model.model.vocab_size), max_tokens, sampling, model._eos_ids(), model.tokenizer
        )
    max_tokens = options.pop("max_tokens", None) or 256
    eos = frozenset(options.pop("eos", ()))
    return Wanted(_checked_ids(prompt, model.vocab_size), max_tokens, Sampling(**options).checked(), eos)
