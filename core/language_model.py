"""``LanguageModel``: a loaded model with its tokenizer; text and conversations in, text out.

The seam between ids and text: the loop in ``core.generation`` knows only ids, ``core.text`` only strings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from core.config.context import context_length
from core.errors import TokenizerError, UsageError
from core.generation import (
    FinishReason,
    GenerationChunk,
    GenerationResult,
    GenerationStats,
    Sampling,
    SamplingOptions,
    Token,
    checkpoint_number,
    checkpoint_settings,
    sampling_from,
    spelled_out,
    stream_tokens,
)
from core.nn import Cache
from core.text.breakers import breaker_ids
from core.text.stops import StopStrings
from core.text.tool_calls import parse_tool_calls

if TYPE_CHECKING:
    from core.config import ModelConfig
    from core.loading import LoadReport, Origin
    from core.prompt_cache import PrefixCache
    from core.text import NativeTokenizer, Tokenizer

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A raw text, token ids, or a conversation: a list of messages with ``role`` and ``content``."""

_DEFAULT_MAX_TOKENS = 256


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

        Settings that are None come from the checkpoint's generation config, else do nothing: without any, the likeliest
        token is taken. The result says which were used. The last chunk carries the result. A closed stream leaves the
        cache as ``generate_tokens`` says; one that a stop string ended, as if closed after the token that completed it.

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
        watch = StopStrings(() if stop is None else stop)
        settings = {"max_kv_tokens": max_kv_tokens, "kv_bits": kv_bits, "kv_group_size": kv_group_size}
        given = {name: value for name, value in settings.items() if value is not None}
        if cache is not None and (given or prefix is not None):
            raise UsageError(f"{next(iter(given), 'prefix')} is for a new cache, and this one is given")
        ids = self.encode(prompt, tools=tools, begins=cache is None or not any(cache.lengths))
        chosen = self.sampling(**sampling)
        if max_tokens is None:
            stated = checkpoint_number(self.generation_config, "max_new_tokens", int)
            max_tokens = _DEFAULT_MAX_TOKENS if stated is None else stated
        stats = GenerationStats()
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
            eos=self._eos_ids(),
            context=None if max_kv_tokens is not None else self.context,
            logprobs=logprobs,
            history=history,
            cache=cache,
            stats=stats,
            progress=progress,
        )
        if continues is None:
            continues = not isinstance(next(iter(prompt), None), Mapping)
        empty = GenerationResult("", [], ids, "length", chosen, stats)
        answer = self._stream(tokens, ids if continues else [], watch, empty, logprobs, bool(tools))
        return answer if prefix is None else _kept(answer, prefix, cache)

    @functools.cached_property
    def context(self) -> int | None:
        """Tokens that fit a sequence, prompt and output; None where there is no limit.

        The config's ``max_position_embeddings``, with its rotary scaling. A model all of whose blocks attend within a
        window, or keep a state, has no limit: no distance between two tokens becomes larger than in training.
        """
        length = context_length(self.config)
        specs = [block.spec for block in self.make_cache().blocks]
        bounded = all(
            spec.kind == "state" or (spec.window is not None and spec.window <= (length or 0)) for spec in specs
        )
        return None if specs and bounded else length

    def encode(
        self, prompt: Prompt, *, tools: Sequence[Mapping[str, Any]] | None = None, begins: bool = True
    ) -> list[int]:
        """The ids of a prompt, as ``stream`` would process them.

        Args:
            begins: the prompt starts a sequence, so that BOS belongs before it.
        """
        if isinstance(prompt, bytes | bytearray):
            raise UsageError("a prompt is text, not bytes", hint='Decode it: data.decode("utf-8").')
        if hasattr(prompt, "tolist"):  # an array of ids
            prompt = prompt.tolist()
        if not isinstance(prompt, str) and all(isinstance(item, int) for item in prompt):
            return [item for item in prompt if isinstance(item, int)]
        if self.tokenizer is None:
            raise TokenizerError("this model was loaded without a tokenizer", hint="Pass token ids, or load with one.")
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_special_tokens=begins)
        messages = [item for item in prompt if isinstance(item, Mapping)]
        if len(messages) != len(prompt):
            raise UsageError(
                "a prompt is a string, a list of ids or a list of messages", found="a list of other things"
            )
        ids = self.tokenizer.encode_chat(messages, tools=tools)
        return ids[1:] if not begins and ids[:1] == [self.tokenizer.bos_id] else ids

    @spelled_out
    def sampling(self, **options: Unpack[SamplingOptions]) -> Sampling:
        """The settings that a generation would use: those given, else the checkpoint's, else none.

        Raises:
            UsageError: a setting out of range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        stated = {name: value for name, value in self.generation_config.items() if name not in given}
        settings: dict[str, Any] = {**checkpoint_settings(stated), **given}
        if settings.get("dry_multiplier") and "dry_breakers" not in settings and self.tokenizer is not None:
            settings["dry_breakers"] = self._breakers
        return sampling_from(settings)

    @functools.cached_property
    def _breakers(self) -> tuple[int, ...]:
        assert self.tokenizer is not None
        rows = getattr(self.model, "vocab_size", self.tokenizer.vocab_size)
        return tuple(token_id for token_id in breaker_ids(self.tokenizer) if token_id < rows)

    def _eos_ids(self) -> frozenset[int]:
        """The tokenizer's, or without one those that the checkpoint's configs name."""
        if self.tokenizer is not None:
            return self.tokenizer.eos_ids
        configs = [self.generation_config] + ([self.origin.raw_config] if self.origin is not None else [])
        named = [config.get("eos_token_id") for config in configs]
        ids = [item for value in named for item in (value if isinstance(value, list) else [value])]
        return frozenset(item for item in ids if isinstance(item, int))

    def _stream(
        self,
        tokens: Generator[Token, None, None],
        before: list[int],
        stops: StopStrings,
        result: GenerationResult,
        logprobs: int | None,
        calls: bool,
    ) -> Iterator[GenerationChunk]:
        eos = self._eos_ids()
        detokenizer = self.tokenizer.detokenizer(before) if self.tokenizer is not None else None
        generated: list[Token] = []
        pieces: list[str] = []
        reason: FinishReason = "length"
        stopped_by: str | int | None = None
        with contextlib.closing(tokens):
            for token in tokens:
                generated.append(token)
                text = ""
                if token.id in eos:
                    stopped_by = token.id
                elif detokenizer is not None:
                    text = stops.add(detokenizer.add(token.id))
                    pieces.append(text)
                reason = token.finish_reason or reason
                yield GenerationChunk(text, token.id, None, token.logprob, token.top)
                if stops.found is not None:
                    break
        rest = stops.add(detokenizer.finish()) + stops.finish() if detokenizer is not None else ""
        pieces.append(rest)
        if stops.found is not None:
            reason, stopped_by = "stop", stops.found
        whole = dataclasses.replace(
            result,
            text="".join(pieces),
            token_ids=[token.id for token in generated],
            finish_reason=reason,
            stopped_by=stopped_by,
            logprobs=None if logprobs is None else [token.logprob or 0.0 for token in generated],
            top_logprobs=None if logprobs is None else [token.top for token in generated],
        )
        if calls and self.tokenizer is not None:
            called = parse_tool_calls(whole.token_ids, self.tokenizer)
            if called.calls:  # the text beside them: what is written of a call is no prose
                whole = dataclasses.replace(whole, text=called.text, tool_calls=called.calls)
        yield GenerationChunk(rest, None, whole)


def _kept(answer: Iterator[GenerationChunk], prefix: PrefixCache, cache: Cache) -> Iterator[GenerationChunk]:
    """The answer; what it leaves is stored before its last chunk comes."""
    for chunk in answer:
        if chunk.result is not None:
            prefix.store([*chunk.result.prompt_ids, *chunk.result.token_ids], cache)
        yield chunk
