"""The token loop: prefill in chunks, then one token after another, the device always one step ahead of the host."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from core.device import wired_memory
from core.errors import UsageError
from core.generation.result import GenerationStats
from core.generation.sampling import Sampling
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


def generate_tokens(
    model: CausalLM,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    eos: Collection[int] = (),
    cache: Cache | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    stats: GenerationStats | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[int]:
    """Generates token ids.

    At most ``max_tokens`` are yielded, the last one in ``eos`` if one came up; without ``eos`` nothing stops earlier.
    With 0, nothing is processed either.
    However the iterator ends, exhausted, closed or by an error while it waits, the cache then holds what it held
    before, the prompt, and the ids yielded but the last, whose key and value were not computed or were taken back.

    Args:
        model: has ``make_cache``, ``hidden_states`` and ``head``, as ``core.nn.Decoder``.
        prompt_ids: at least one id; they follow what the cache already holds.
        temperature, top_p, top_k, seed: as in ``Sampling``.
        cache: for one sequence; None makes a new one.
        prefill_chunk: prompt tokens processed at once.
        stats: filled in as the generation goes.
        progress: called with the prompt's tokens processed so far and all of them, after each chunk but the last, whose
            end is the first token. What it raises ends the generation.

    Raises:
        UsageError: an empty prompt, an id that the vocabulary has not, or a setting out of range.
    """
    prompt = _checked_ids(prompt_ids, getattr(model, "vocab_size", None))
    if max_tokens < 0 or prefill_chunk < 1:
        raise UsageError("max_tokens must not be negative, and prefill_chunk positive")
    sampling = Sampling(temperature, top_p, top_k, seed).checked()
    return _generate(
        model,
        prompt,
        max_tokens,
        sampling,
        frozenset(eos),
        model.make_cache() if cache is None else cache,
        # Where rotary frequencies depend on the length, keys of an early chunk would be rotated for a shorter prompt.
        len(prompt) if len(prompt) > prefill_chunk and depends_on_length(model) else prefill_chunk,
        GenerationStats() if stats is None else stats,
        progress,
    )


def _generate(
    model: CausalLM,
    prompt: list[int],
    max_tokens: int,
    sampling: Sampling,
    eos: frozenset[int],
    cache: Cache,
    chunk: int,
    stats: GenerationStats,
    progress: Callable[[int, int], None] | None,
) -> Iterator[int]:
    if max_tokens == 0:
        return
    sample = sampling.sampler()
    started = time.perf_counter()
    mx.reset_peak_memory()
    stats.prompt_tokens = len(prompt)
    position = cache.length + len(prompt)  # of the next token to choose
    with wired_memory():
        token = sample(_prefill(model, prompt, cache, chunk, progress), position)
        # The caches too: what a window has dropped of a long prompt would stay until the next step.
        mx.async_eval(token, cache.arrays())
        processed, yielded = cache.length, 0
        fast = _fast_step(model, cache) if max_tokens > 1 else None
        while True:
            try:
                ahead = stats.generated_tokens + 1 < max_tokens
                if ahead:
                    position += 1
                    logits = (
                        model.head(model.hidden_states(token[:, None], cache))[:, -1] if fast is None else fast(token)
                    )
                    following = sample(logits, position)
                    mx.async_eval(following)
                token_id = int(token.item())  # type: ignore[arg-type]
                now = time.perf_counter()
                stats.generated_tokens += 1
                if stats.generated_tokens == 1:
                    stats.prompt_seconds = now - started
                    started = now
                else:
                    stats.decode_seconds = now - started
                stats.peak_memory = mx.get_peak_memory()
                yielded += 1
                yield token_id
            except BaseException:
                _leave(cache, processed + max(0, yielded - 1), fast)
                raise
            if not ahead or token_id in eos:
                _leave(cache, processed + max(0, yielded - 1), fast)
                return
            token = following


def _prefill(
    model: CausalLM, prompt: list[int], cache: Cache, chunk: int, progress: Callable[[int, int], None] | None
) -> mx.array:
    """Processes the prompt and returns the logits of its last position, ``[1, vocab]``."""
    tokens = mx.array(prompt, dtype=mx.int32)[None]
    for start in range(0, len(prompt), chunk):
        hidden = model.hidden_states(tokens[:, start : start + chunk], cache)
        if start + chunk < len(prompt):
            mx.eval(cache.arrays())
            if progress is not None:
                progress(start + chunk, len(prompt))
    return model.head(hidden[:, -1:])[:, -1]


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
