"""What a request asks for: a prompt and the options of a stream, checked. Knows models and tokenizers; no schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import TokenizerError, UsageError
from core.generation import FinishReason, Sampling, sampling_from
from core.generation.loop import _checked_ids
from core.generation.options import checkpoint_number
from core.language_model import LanguageModel
from core.text.stops import checked_stops

if TYPE_CHECKING:
    from core.text import NativeTokenizer, Tokenizer

_MAX_TOKENS = 256
_OF_THE_BATCH = ("cache", "prefix", "max_kv_tokens", "kept_tokens", "kv_bits", "kv_group_size")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request, checked.

    Attributes:
        prompt_ids: at least one.
        max_tokens: new tokens at most, within the model's context.
        limit: why the answer ends when it has so many.
        eos: ids that end the answer.
        stop: strings that end it.
        logprobs: most likely tokens to report for each; None reports none.
        tokenizer: of the text; None where there are only ids.
        continues: the text goes on from the prompt's, as for ``LanguageModel.stream``.
        calls: tools were offered, so that the answer may call them.
    """

    prompt_ids: list[int]
    max_tokens: int
    limit: FinishReason
    sampling: Sampling
    eos: frozenset[int]
    stop: Sequence[str] = ()
    logprobs: int | None = None
    tokenizer: Tokenizer | NativeTokenizer | None = None
    continues: bool = True
    calls: bool = False


def wanted(model: Any, prompt: Any, options: Mapping[str, Any]) -> Wanted:
    """Checks a prompt and its options.

    Args:
        model: a ``LanguageModel``, or a ``Decoder``, whose prompts are ids and which takes ``eos`` as an option.

    Raises:
        UsageError, TokenizerError, ChatTemplateError: as ``LanguageModel.stream``.
    """
    rest = dict(options)
    refused = next((name for name in _OF_THE_BATCH if rest.get(name) is not None), None)
    if refused is not None:
        raise UsageError(f"{refused!r} is of the whole batch, not of one request", hint="Give it to core.Batch.")
    max_tokens, logprobs = rest.pop("max_tokens", None), rest.pop("logprobs", None)
    stop, tools, eos = rest.pop("stop", None) or (), rest.pop("tools", None), rest.pop("eos", None)
    for name, value in (("max_tokens", max_tokens), ("logprobs", logprobs)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise UsageError(f"{name} is out of range", expected="an integer, 0 or more", found=repr(value))
    for name in _OF_THE_BATCH:
        rest.pop(name, None)
    context = tokenizer = None
    continues = True
    if isinstance(model, LanguageModel):
        stated = rest.pop("continues", None)
        continues = not isinstance(next(iter(prompt), None), Mapping) if stated is None else bool(stated)
        ids, sampling = model.encode(prompt, tools=tools), model.sampling(**rest)
        context, tokenizer = model.context, model.tokenizer
        vocab_size: int = model.model.vocab_size
        if max_tokens is None:
            max_tokens = checkpoint_number(model.generation_config, "max_new_tokens", int)
        eos = model._eos_ids() if eos is None else eos
    else:
        ids, sampling, vocab_size = prompt, sampling_from(rest), model.vocab_size
    max_tokens = _MAX_TOKENS if max_tokens is None else max_tokens
    if stop and tokenizer is None:
        raise TokenizerError("stop strings need a tokenizer", hint="Load with one, or look for ids yourself.")
    ids = _checked_ids(ids, vocab_size)
    _check_ids_of(sampling, logprobs, vocab_size)
    room = max_tokens if context is None else min(max_tokens, context - len(ids))
    if room <= 0 < max_tokens:
        raise UsageError(
            "the prompt leaves no room in the model's context",
            expected=f"fewer than {context} tokens",
            found=len(ids),
        )
    limit: FinishReason = "length" if room == max_tokens else "context"
    return Wanted(
        ids,
        room,
        limit,
        sampling,
        frozenset(eos or ()),
        checked_stops(stop),
        logprobs,
        tokenizer,
        continues,
        bool(tools),
    )


def _check_ids_of(sampling: Sampling, logprobs: int | None, vocab_size: int) -> None:
    """What the chooser would refuse, when it is too late to tell whoever asked."""
    for name, ids in (("logit_bias", list(sampling.logit_bias)), ("dry_breakers", sampling.dry_breakers)):
        if len(ids) and not 0 <= min(ids) <= max(ids) < vocab_size:
            wrong = next(item for item in ids if not 0 <= item < vocab_size)
            raise UsageError(f"id {wrong} in {name} is not in the vocabulary", expected=f"0 to {vocab_size - 1}")
    if logprobs is not None and logprobs > vocab_size:
        raise UsageError("logprobs is out of range", expected=f"0 to {vocab_size}, or None", found=logprobs)
