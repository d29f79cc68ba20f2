"""The public functions: requests for tokens, checked before anything is computed."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Unpack

from core.errors import UsageError
from core.generation.chooser import check_request
from core.generation.loop import PREFILL_CHUNK, CausalLM, token_loop
from core.generation.options import SamplingOptions, sampling_from, spelled_out
from core.generation.result import GenerationStats, Token
from core.generation.sampling import Sampling
from core.nn import Cache, depends_on_length


@spelled_out
def generate_tokens(
    model: CausalLM,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int = 256,
    eos: Collection[int] = (),
    cache: Cache | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    stats: GenerationStats | None = None,
    progress: Callable[[int, int], None] | None = None,
    **sampling: Unpack[SamplingOptions],
) -> Iterator[int]:
    """Generates token ids.

    At most ``max_tokens`` are yielded, the last one in ``eos`` if one came up; without ``eos`` nothing stops earlier.
    With 0, nothing is processed either.
    However the iterator ends, exhausted, closed or by an error while it waits, the cache then holds what it held
    before, the prompt, and the ids yielded but the last, whose key and value were not computed or were taken back.

    Args:
        model: has ``make_cache``, ``hidden_states`` and ``head``, as ``core.nn.Decoder``.
        prompt_ids: at least one id; they follow what the cache already holds.
        cache: for one sequence; None makes a new one.
        prefill_chunk: prompt tokens processed at once.
        stats: filled in as the generation goes.
        progress: called with the prompt's tokens processed so far and all of them, after each chunk but the last, whose
            end is the first token. What it raises ends the generation.
        sampling: the fields of ``Sampling``. Penalties look back on the prompt, not on what the cache held before.

    Raises:
        UsageError: an empty prompt, an id that the vocabulary has not, or a setting out of range.
        ProcessorError: while it runs: a user's own processor failed.
    """
    tokens = stream_tokens(
        model,
        prompt_ids,
        sampling_from(sampling),
        max_tokens=max_tokens,
        eos=eos,
        cache=cache,
        prefill_chunk=prefill_chunk,
        stats=stats,
        progress=progress,
    )
    return _ids(tokens)


def stream_tokens(
    model: CausalLM,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    *,
    max_tokens: int = 256,
    eos: Collection[int] = (),
    context: int | None = None,
    logprobs: int | None = None,
    history: Sequence[int] = (),
    cache: Cache | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    stats: GenerationStats | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generator[Token, None, None]:
    """``generate_tokens`` with what is known of each token: log-probabilities, and why it was the last.

    Args:
        sampling: ``checked``.
        context: positions that the model has; the prompt must leave room for a token, and the generation ends where
            they do. None: no limit.
        logprobs: compute the log-probabilities of the chosen token and of this many of the likeliest; None: none.
        history: ids before the prompt, those that the cache holds or some of them, for penalties and processors to look
            back on; nothing is computed for them.

    Raises:
        UsageError: as ``generate_tokens``, or a prompt that fills the context.
    """
    vocab_size = getattr(model, "vocab_size", None)
    prompt = checked_ids(prompt_ids, vocab_size)
    for name, value, least in (("max_tokens", max_tokens, 0), ("prefill_chunk", prefill_chunk, 1)):
        if not hasattr(value, "__index__") or value < least:
            raise UsageError(f"{name} is out of range", expected=f"an integer, {least} or more", found=repr(value))
    if vocab_size is not None:
        check_request(sampling, [*history, *prompt], logprobs, vocab_size)
    held = 0 if cache is None else cache.length
    if context is not None and held + len(prompt) >= context and max_tokens > 0:
        before = f" after {held} in the cache" if held else ""
        raise UsageError(
            "the prompt leaves no room in the model's context",
            expected=f"fewer than {context} tokens",
            found=f"{len(prompt)}{before}",
            hint="Give a shorter one; or bound the cache (max_kv_tokens), and the context is no limit.",
        )
    return token_loop(
        model,
        prompt,
        max_tokens,
        context,
        sampling,
        logprobs,
        [*history, *prompt],
        frozenset(eos),
        model.make_cache() if cache is None else cache,
        # Where rotary frequencies depend on the length, keys of an early chunk would be rotated for a shorter prompt.
        len(prompt) if len(prompt) > prefill_chunk and depends_on_length(model) else prefill_chunk,
        GenerationStats() if stats is None else stats,
        progress,
    )


def _ids(tokens: Generator[Token, None, None]) -> Iterator[int]:
    with contextlib.closing(tokens):
        for token in tokens:
            yield token.id


def checked_ids(ids: Sequence[int], vocab_size: int | None) -> list[int]:
    """The ids as integers: MLX reads whatever lies behind an index that is out of range."""
    if len(ids) == 0:
        raise UsageError("the prompt has no tokens", hint="Give at least one, for instance the tokenizer's BOS.")
    try:
        prompt = [operator.index(token_id) for token_id in ids]
    except TypeError:
        raise UsageError("the prompt holds something else than token ids", expected="integers") from None
    for place, token_id in enumerate(prompt):
        if token_id < 0 or (vocab_size is not None and token_id >= vocab_size):
            raise UsageError(
                f"id {token_id} at position {place} of the prompt is not in the vocabulary",
                expected="0 or more" if vocab_size is None else f"0 to {vocab_size - 1}",
            )
    return prompt
