"""The token loop: prefill in chunks, then one token after another, the device always one step ahead of the host."""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import mlx.core as mx

from core.device import wired_memory
from core.errors import UsageError
from core.generation.chooser import Choice, Chooser, check_request
from core.generation.options import SamplingOptions, sampling_from, spelled_out
from core.generation.result import FinishReason, GenerationStats, Token, TopLogprobs
from core.generation.sampling import Sampling
from core.kernels import inference
from core.nn import Cache, depends_on_length

if TYPE_CHECKING:
    from core.fast import FastStep

PREFILL_CHUNK = 2048
"""Prompt tokens processed at once: enough to fill a device, and a bound on the memory of activations."""


class CausalLM(Protocol):
    """What the loop needs of a model; ``core.nn.Decoder`` has it."""

    def make_cache(self, batch: int = 1) -> Cache: ...

    def hidden_states(self, tokens: mx.array, cache: Cache | None = None) -> mx.array: ...

    def head(self, x: mx.array) -> mx.array: ...


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
    prompt = _checked_ids(prompt_ids, vocab_size)
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
            hint="core.generate_tokens knows no limit, but beyond it the model was not made to work.",
        )
    return _generate(
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


def _generate(
    model: CausalLM,
    prompt: list[int],
    max_tokens: int,
    context: int | None,
    sampling: Sampling,
    logprobs: int | None,
    history: list[int],
    eos: frozenset[int],
    cache: Cache,
    chunk: int,
    stats: GenerationStats,
    progress: Callable[[int, int], None] | None,
) -> Generator[Token, None, None]:
    if max_tokens == 0:
        return
    started = time.perf_counter()
    mx.reset_peak_memory()
    stats.prompt_tokens = len(prompt)
    position = cache.length + len(prompt)  # of the next token to choose
    limit: FinishReason = "length"
    if context is not None and context - position < max_tokens:
        max_tokens, limit = max(1, context - position), "context"
    with wired_memory():
        logits = _prefill(model, prompt, cache, chunk, progress)
        chooser = Chooser(logits.shape[-1])
        chooser.join(sampling, history, logprobs)
        choice = chooser.choose(logits, (position,))
        # The caches too: what a window has dropped of a long prompt would stay until the next step.
        mx.async_eval(choice.arrays(), cache.arrays())
        processed, yielded = cache.length, 0
        fast = _fast_step(model, cache) if max_tokens > 1 else None
        while True:
            try:
                ahead = stats.generated_tokens + 1 < max_tokens
                if ahead:
                    position += 1
                    last = choice.ids
                    logits = _next_logits(model, last, cache) if fast is None else fast(last)
                    following = chooser.choose(logits, (position,))
                    mx.async_eval(following.ids if logprobs is None else following.arrays())
                token_id = int(choice.ids.item())  # type: ignore[arg-type]
                now = time.perf_counter()
                stats.generated_tokens += 1
                if stats.generated_tokens == 1:
                    stats.prompt_seconds = now - started
                    started = now
                else:
                    stats.decode_seconds = now - started
                stats.peak_memory = mx.get_peak_memory()
                yielded += 1
                finish: FinishReason | None = "stop" if token_id in eos else None if ahead else limit
                yield Token(token_id, None, (), finish) if logprobs is None else _told(choice, token_id, finish)
            except BaseException:
                _leave(cache, processed + max(0, yielded - 1), fast)
                raise
            if finish is not None:
                _leave(cache, processed + max(0, yielded - 1), fast)
                return
            choice = following


def _told(choice: Choice, token_id: int, finish: FinishReason | None) -> Token:
    """A token with its log-probabilities."""
    assert choice.logprobs is not None
    top: TopLogprobs = ()
    if choice.top_ids is not None and choice.top_logprobs is not None:
        ids: Any = choice.top_ids[0].tolist()
        values: Any = choice.top_logprobs[0].tolist()
        top = tuple(zip(ids, values, strict=True))
    return Token(token_id, float(choice.logprobs.item()), top, finish)  # type: ignore[arg-type]


def _prefill(
    model: CausalLM, prompt: list[int], cache: Cache, chunk: int, progress: Callable[[int, int], None] | None
) -> mx.array:
    """Processes the prompt and returns the logits of its last position, ``[1, vocab]``."""
    tokens = mx.array(prompt, dtype=mx.int32)[None]
    for start in range(0, len(prompt), chunk):
        with inference():
            hidden = model.hidden_states(tokens[:, start : start + chunk], cache)
        if start + chunk < len(prompt):
            mx.eval(cache.arrays())
            if progress is not None:
                progress(start + chunk, len(prompt))
    with inference():
        return model.head(hidden[:, -1:])[:, -1]


def _next_logits(model: CausalLM, token: mx.array, cache: Cache) -> mx.array:
    with inference():
        return model.head(model.hidden_states(token[:, None], cache))[:, -1]


def _fast_step(model: CausalLM, cache: Cache) -> FastStep | None:
    """A fast step, where the room for it exists and has one for this model."""
    try:
        from core.fast import fast_step
    except ImportError:
        return None
    return fast_step(model, cache)


def _leave(cache: Cache, length: int, fast: FastStep | None) -> None:
    """Forgets what ran ahead, so that the cache holds ``length`` tokens."""
    if fast is not None:
        fast.close()
    if cache.length > length:
        cache.rewind(cache.length - length)


def _checked_ids(ids: Sequence[int], vocab_size: int | None) -> list[int]:
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
