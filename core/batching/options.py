"""Checks what a request asks for: its prompt, and the options of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import TokenizerError, UsageError
from core.generation import FinishReason, Sampling, sampling_from
from core.generation.chooser import check_request
from core.generation.entry import checked_ids
from core.language_model import LanguageModel
from core.language_model.defaults import default_max_tokens, default_stops
from core.language_model.prompt import continues_text
from core.text.stops import checked_stops

if TYPE_CHECKING:
    from core.text import NativeTokenizer, Tokenizer

_OF_THE_BATCH = ("cache", "prefix", "max_kv_tokens", "kept_tokens", "kv_bits", "kv_group_size")
_OF_A_STREAM = ("history", "progress")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request, checked.

    Attributes:
        prompt_ids: at least one.
        max_tokens: new tokens at most, within the model's context.
        limit: the finish reason of an answer of ``max_tokens``.
        eos: ids that end the answer.
        stop: strings that end it.
        logprobs: how many of the most likely tokens to report for each token; None reports none.
        tokenizer: decodes the text; None where there are only ids.
        calls: tools were offered, so the result lists the calls that the model asks for.
        continues: the answer's text continues the prompt's.
    """

    prompt_ids: list[int]
    max_tokens: int
    limit: FinishReason
    sampling: Sampling
    eos: frozenset[int]
    stop: Sequence[str] = ()
    logprobs: int | None = None
    tokenizer: Tokenizer | NativeTokenizer | None = None
    calls: bool = False
    continues: bool = True


def wanted(model: Any, prompt: Any, options: Mapping[str, Any], *, bounded: bool = False) -> Wanted:
    """Checks a prompt and its options.

    Args:
        model: a ``LanguageModel``, or a ``Decoder``, whose prompts are ids and which takes ``eos`` as an option.
        bounded: caches keep only the last tokens (``max_kv_tokens``), so the model's context is no limit.

    Raises:
        UsageError, TokenizerError, ChatTemplateError: as ``LanguageModel.stream``.
    """
    rest = dict(options)
    refused = next((name for name in _OF_THE_BATCH if rest.get(name) is not None), None)
    if refused is not None:
        raise UsageError(f"{refused!r} is set for a batch, not for one request", hint="Give it to core.Batch.")
    refused = next((name for name in _OF_A_STREAM if rest.pop(name, None)), None)
    if refused is not None:
        raise UsageError(f"{refused!r} is for LanguageModel.stream, not for a request of a batch")
    if hasattr(prompt, "tolist"):  # an array of ids
        prompt = prompt.tolist()
    max_tokens, logprobs = rest.pop("max_tokens", None), rest.pop("logprobs", None)
    stop, tools, eos = rest.pop("stop", None), rest.pop("tools", None), rest.pop("eos", None)
    for name, value in (("max_tokens", max_tokens), ("logprobs", logprobs)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise UsageError(f"{name} is out of range", expected="an integer, 0 or more", found=repr(value))
    for name in _OF_THE_BATCH:
        rest.pop(name, None)
    if stop is None:
        stop = default_stops(model.generation_config, model.tokenizer) if isinstance(model, LanguageModel) else ()
    context = tokenizer = None
    continues = True
    if isinstance(model, LanguageModel):
        stated = rest.pop("continues", None)
        continues = continues_text(prompt) if stated is None else bool(stated)
        ids, sampling = model.encode(prompt, tools=tools), model.sampling(**rest)
        context, tokenizer = None if bounded else model.context, model.tokenizer
        vocab_size: int = model.model.vocab_size
        eos = model.eos_ids if eos is None else eos
    else:
        ids, sampling, vocab_size = prompt, sampling_from(rest), model.vocab_size
    if max_tokens is None:
        max_tokens = default_max_tokens(model.generation_config if isinstance(model, LanguageModel) else {})
    if stop and tokenizer is None:
        raise TokenizerError("stop strings need a tokenizer", hint="Load with one, or look for ids yourself.")
    ids = checked_ids(ids, vocab_size)
    check_request(sampling, ids, logprobs, vocab_size)  # checked here, while the caller can still be told
    room = max_tokens if context is None else min(max_tokens, context - len(ids))
    if room <= 0 < max_tokens:
        raise UsageError(
            "the prompt leaves no room in the model's context",
            expected=f"fewer than {context} tokens",
            found=len(ids),
        )
    limit: FinishReason = "length" if room == max_tokens else "context"
    stops, ends = checked_stops(stop), frozenset(eos or ())
    return Wanted(ids, room, limit, sampling, ends, stops, logprobs, tokenizer, bool(tools), continues)
