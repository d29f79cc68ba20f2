"""The token loop: prefill in chunks, then one token after another, the device always one step ahead of the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import mlx.core as mx

from core.device import backend, wired_memory
from core.generation.chooser import Choice, Chooser
from core.generation.chunks import ChunkSize
from core.generation.padding import chunk_length, padded_length
from core.generation.result import FinishReason, GenerationStats, Token, TopLogprobs
from core.generation.sampling import Sampling
from core.kernels import inference
from core.nn import Cache

if TYPE_CHECKING:
    from core.fast import FastStep

PREFILL_CHUNK = 2048
"""Prompt tokens processed at once: enough to fill a device, and a bound on the memory of activations."""


class CausalLM(Protocol):
    """What the loop needs of a model; ``core.nn.Decoder`` has it."""

    def make_cache(self, batch: int = 1) -> Cache: ...

    def hidden_states(
        self, tokens: mx.array, cache: Cache | None = None, lengths: Sequence[int] | None = None
    ) -> mx.array: ...

    def head(self, x: mx.array) -> mx.array: ...


def token_loop(
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
    """The tokens of a request that is checked: arguments are those of ``stream_tokens``, none of them left out."""
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
        chooser.join(sampling, history, logprobs, eos)
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
    start, size = 0, ChunkSize(chunk, model, fixed=cache.rotation_limit is not None)
    while True:
        began = time.perf_counter()
        count = chunk_length(cache.length, len(prompt) - start, size.tokens)
        padding = padded_length(model, cache.length, count) - count
        tokens = mx.array(prompt[start : start + count] + [0] * padding, dtype=mx.int32)[None]
        lengths = ([count],) if padding else ()
        with inference():
            hidden = model.hidden_states(tokens, cache, *lengths)
        start += count
        if start == len(prompt):
            break
        _finish(hidden, cache)
        size.took(count, time.perf_counter() - began)
        if progress is not None:
            progress(start, len(prompt))
    with inference():
        return model.head(hidden[:, count - 1 : count])[:, -1]


def _finish(hidden: mx.array, cache: Cache) -> None:
    """Computes a chunk, on a CPU without asking the cache for its arrays, which the next step would then copy."""
    mx.eval(hidden if backend() == "cpu" else cache.arrays())


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
