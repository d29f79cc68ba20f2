"""``LanguageModel``: what a caller has in hand, and the order in which prompt, settings, tokens and answer follow."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from core.errors import TokenizerError, UsageError
from core.generation import (
    FinishReason,
    GenerationChunk,
    GenerationResult,
    GenerationStats,
    Sampling,
    SamplingOptions,
    Token,
    checkpoint_settings,
    sampling_from,
    spelled_out,
    stream_tokens,
)
from core.language_model.answer import Answer
from core.language_model.defaults import context_of, default_max_tokens, default_stops, named_eos_ids
from core.language_model.prompt import Prompt, continues_text, prompt_ids
from core.nn import Cache
from core.text.breakers import breaker_ids
from core.text.stops import checked_stops

if TYPE_CHECKING:
    from core.config import ModelConfig
    from core.loading import LoadReport, Origin
    from core.prompt_cache import PrefixCache
    from core.text import NativeTokenizer, Tokenizer


class LanguageModel:
    """A model that is ready to use. Made by ``core.load``.

    Attributes:
        model: the module tree; ``model(tokens)`` maps ``[batch, seq]`` ids to ``[batch, seq, vocab]`` logits.
        config: what the plugin read from ``config.json``.
        tokenizer: None when loaded with ``tokenizer=False``.
        report: what was loaded, by whom, and what was left unread.
        generation_config: the checkpoint's own defaults, as in its ``generation_config.json``.
        origin: what ``core.save`` needs to know; None for a model that was not loaded.
    """

    def __init__(
        self,
        model: Any,
        config: ModelConfig,
        tokenizer: Tokenizer | NativeTokenizer | None,
        report: LoadReport,
        generation_config: Mapping[str, Any] | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.tokenizer = tokenizer
        self.report = report
        self.generation_config = dict(generation_config or {})
        self.origin = origin

    def __repr__(self) -> str:
        return f"<LanguageModel {self.report.plan.source} ({self.config.model_type})>"

    def make_cache(self, batch: int = 1, **settings: int | None) -> Cache:
        """An empty cache for ``batch`` sequences; settings are those of ``core.nn.CacheSettings``."""
        return self.model.make_cache(batch, **settings)

    def generate(self, prompt: Prompt, **options: Any) -> GenerationResult:
        """Generates to the end; options are those of ``stream``."""
        for chunk in self.stream(prompt, **options):
            if chunk.result is not None:
                return chunk.result
        raise AssertionError("a stream ends with its result")

    @spelled_out
    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: int | None = None,
        cache: Cache | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        history: Sequence[int] = (),
        continues: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
        prefix: PrefixCache | None = None,
        max_kv_tokens: int | None = None,
        kv_bits: int | None = None,
        kv_group_size: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[GenerationChunk]:
        """Generates text piece by piece, until an end-of-sequence token, a stop string or ``max_tokens``.

        Settings that are None, ``stop`` among them, come from the checkpoint's generation config, else do nothing:
        without any, the likeliest token is taken. The result says which were used. The last chunk carries the result. A
        closed stream leaves the cache as ``generate_tokens`` says; one that a stop string ended, as if closed after the
        token that completed it.

        Args:
            prompt: a string is continued as it is; a list of messages goes through the chat template; ids are ids.
            stop: strings that end the new text and are not part of it, wherever tokens begin and end; text is held back
                as long as one may still come of it. The first to be complete ends the text.
            logprobs: also give the log-probabilities of each token and of this many of the likeliest in its place, in
                the model's own distribution, before any setting; 0 gives the token's alone.
            cache: continues what it holds; BOS is not added again to a cache that holds tokens.
            tools: descriptions of tools for the chat template; the result then has the calls that the model asks for.
            history: ids that ``cache`` holds, for settings that look back; without it they see the prompt only.
            continues: the text goes on from the prompt's: a space between two words is kept, and a character that the
                prompt has begun is ended. False where an answer begins. None: unless the prompt is a list of messages.
            progress: called as the prompt is processed, as ``generate_tokens`` says.
            prefix: what earlier prompts have left: the longest common beginning is not processed again, and what this
                one leaves is kept there.
            max_kv_tokens, kv_bits, kv_group_size: of the cache, as in ``core.nn.CacheSettings``; not beside ``cache``,
                which has settings of its own. With ``max_kv_tokens`` the model's context is no limit.
            sampling: the fields of ``core.generation.Sampling``. ``dry_breakers`` are by default the tokens with a line
                end, a colon, a quote or an asterisk in them.

        Raises:
            TokenizerError: text, or a stop string, without a tokenizer.
            ChatTemplateError: a conversation that the template refuses, or no template.
            UsageError: an empty prompt, one that fills the model's ``context``, or a setting out of range.
            CacheError: ``prefix`` belongs to another model or other settings.
            ProcessorError: while it runs: a processor of the user's own failed.
        """
        if stop and self.tokenizer is None:
            raise TokenizerError("stop strings need a tokenizer", hint="Load with one, or look for ids yourself.")
        stops = checked_stops(default_stops(self.generation_config, self.tokenizer) if stop is None else stop)
        settings = {"max_kv_tokens": max_kv_tokens, "kv_bits": kv_bits, "kv_group_size": kv_group_size}
        given = {name: value for name, value in settings.items() if value is not None}
        if cache is not None and (given or prefix is not None):
            raise UsageError(f"{next(iter(given), 'prefix')} is for a new cache, and this one is given")
        ids = self.encode(prompt, tools=tools, begins=cache is None or not any(cache.lengths))
        chosen = self.sampling(**sampling)
        if max_tokens is None:
            max_tokens = default_max_tokens(self.generation_config)
        stats, eos = GenerationStats(), self.eos_ids
        reused = 0
        if cache is None:
            cache = self.make_cache(**given)
            if prefix is not None:
                cache, reused = prefix.fetch(ids, cache)
                history = ids[:reused]
        tokens = stream_tokens(
            self.model,
            ids[reused:],
            chosen,
            max_tokens=max_tokens,
            eos=eos,
            context=None if max_kv_tokens is not None else self.context,
            logprobs=logprobs,
            history=history,
            cache=cache,
            stats=stats,
            progress=progress,
        )
        if continues is None:
            continues = continues_text(prompt)
        answer = Answer(
            GenerationResult("", [], ids, "length", chosen, stats),
            self.tokenizer,
            before=ids if continues else [],
            eos=eos,
            stop=stops,
            logprobs=logprobs is not None,
            calls=bool(tools),
        )
        chunks = _answered(tokens, answer)
        return chunks if prefix is None else _kept(chunks, prefix, cache)

    @functools.cached_property
    def context(self) -> int | None:
        """Tokens that fit a sequence, prompt and output; None where there is no limit.

        The config's ``max_position_embeddings``, with its rotary scaling. A model all of whose blocks attend within a
        window, or keep a state, has no limit: no distance between two tokens becomes larger than in training.
        """
        return context_of(self.config, self.make_cache())

    def encode(
        self, prompt: Prompt, *, tools: Sequence[Mapping[str, Any]] | None = None, begins: bool = True
    ) -> list[int]:
        """The ids of a prompt, as ``stream`` would process them.

        Args:
            begins: the prompt starts a sequence, so that BOS belongs before it.
        """
        return prompt_ids(prompt, self.tokenizer, tools=tools, begins=begins)

    @spelled_out
    def sampling(self, **options: Unpack[SamplingOptions]) -> Sampling:
        """The settings that a generation would use: those given, else the checkpoint's, else none.

        Raises:
            UsageError: a setting out of range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        stated = {name: value for name, value in self.generation_config.items() if name not in given}
        settings: dict[str, Any] = {**checkpoint_settings(stated, getattr(self.model, "vocab_size", None)), **given}
        if settings.get("dry_multiplier") and "dry_breakers" not in settings and self.tokenizer is not None:
            settings["dry_breakers"] = self._breakers
        return sampling_from(settings)

    @functools.cached_property
    def _breakers(self) -> tuple[int, ...]:
        assert self.tokenizer is not None
        rows = getattr(self.model, "vocab_size", self.tokenizer.vocab_size)
        return tuple(token_id for token_id in breaker_ids(self.tokenizer) if token_id < rows)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer: the tokenizer's, or without one those that the checkpoint's configs name."""
        if self.tokenizer is not None:
            return self.tokenizer.eos_ids
        return named_eos_ids([self.generation_config] + ([self.origin.raw_config] if self.origin is not None else []))


def _answered(tokens: Generator[Token, None, None], answer: Answer) -> Iterator[GenerationChunk]:
    """The chunks of an answer; the generation is closed with it, or by a stop string."""
    reason: FinishReason = "length"
    with contextlib.closing(tokens):
        for token in tokens:
            chunk = answer.add(token)
            reason = token.finish_reason or reason
            yield chunk
            if isinstance(answer.stopped_by, str):
                break
    yield answer.finish(reason)


def _kept(answer: Iterator[GenerationChunk], prefix: PrefixCache, cache: Cache) -> Iterator[GenerationChunk]:
    """The answer; what it leaves is stored before its last chunk comes."""
    for chunk in answer:
        if chunk.result is not None:
            prefix.store([*chunk.result.prompt_ids, *chunk.result.token_ids], cache)
        yield chunk
