"""``LanguageModel``: a loaded model with its tokenizer; text and conversations in, text out.

The seam between ids and text: the loop in ``core.generation`` knows only ids, ``core.text`` only strings.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.errors import TokenizerError, UsageError
from core.generation import GenerationChunk, GenerationResult, GenerationStats, Sampling, generate_tokens
from core.nn import Cache

if TYPE_CHECKING:
    from core.config import ModelConfig
    from core.loading import LoadReport, Origin
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

    def make_cache(self, batch: int = 1) -> Cache:
        """An empty cache for ``batch`` sequences."""
        return self.model.make_cache(batch)

    def generate(self, prompt: Prompt, **options: Any) -> GenerationResult:
        """Generates to the end; options are those of ``stream``."""
        for chunk in self.stream(prompt, **options):
            if chunk.result is not None:
                return chunk.result
        raise AssertionError("a stream ends with its result")

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        cache: Cache | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continues: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[GenerationChunk]:
        """Generates text piece by piece, until an end-of-sequence token or ``max_tokens``.

        Settings that are None come from the checkpoint's generation config, else are greedy; the result says which were
        used. The last chunk carries the result. A closed stream leaves the cache as ``generate_tokens`` says.

        Args:
            prompt: a string is continued as it is; a list of messages goes through the chat template; ids are ids.
            cache: continues what it holds; BOS is not added again to a cache that holds tokens.
            tools: descriptions of tools for the chat template.
            continues: the text goes on from the prompt's: a space between two words is kept, and a character that the
                prompt has begun is ended. False where an answer begins. None: unless the prompt is a list of messages.
            progress: called as the prompt is processed, as ``generate_tokens`` says.

        Raises:
            TokenizerError: text without a tokenizer.
            ChatTemplateError: a conversation that the template refuses, or no template.
            UsageError: an empty prompt or a setting out of range.
        """
        ids = self.encode(prompt, tools=tools, begins=cache is None or not any(cache.lengths))
        sampling = self.sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        if max_tokens is None:
            max_tokens = self._default("max_new_tokens", int, _DEFAULT_MAX_TOKENS)
        if continues is None:
            continues = not isinstance(next(iter(prompt), None), Mapping)
        return self._stream(ids, ids if continues else [], max_tokens, sampling, cache, progress)

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

    def sampling(
        self,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Sampling:
        """The settings that a generation would use: those given, else the checkpoint's, else greedy."""
        samples = self.generation_config.get("do_sample") is True
        if temperature is None:
            temperature = self._default("temperature", float, 1.0) if samples else 0.0
        if top_p is None:
            top_p = self._default("top_p", float, 1.0)
        if top_k is None:
            top_k = self._default("top_k", int, 0)
        return Sampling(temperature, top_p, top_k, seed).checked()

    def _default(self, key: str, kind: Any, otherwise: Any) -> Any:
        value = self.generation_config.get(key)
        if value is None:
            return otherwise
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise UsageError(f"generation_config.json: key {key!r} is not a number", found=repr(value))
        return kind(value)

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
        ids: list[int],
        before: list[int],
        max_tokens: int,
        sampling: Sampling,
        cache: Cache | None,
        progress: Callable[[int, int], None] | None,
    ) -> Iterator[GenerationChunk]:
        stats = GenerationStats()
        eos = self._eos_ids()
        tokens = generate_tokens(
            self.model,
            ids,
            max_tokens=max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            eos=eos,
            cache=cache,
            stats=stats,
            progress=progress,
        )
        detokenizer = self.tokenizer.detokenizer(before) if self.tokenizer is not None else None
        generated: list[int] = []
        pieces: list[str] = []
        with contextlib.closing(tokens):  # type: ignore[type-var]
            for token_id in tokens:
                generated.append(token_id)
                text = ""
                if detokenizer is not None and token_id not in eos:
                    text = detokenizer.add(token_id)
                    pieces.append(text)
                yield GenerationChunk(text, token_id)
        rest = detokenizer.finish() if detokenizer is not None else ""
        pieces.append(rest)
        reason = "stop" if generated and generated[-1] in eos else "length"
        result = GenerationResult("".join(pieces), generated, ids, reason, sampling, stats)  # type: ignore[arg-type]
        yield GenerationChunk(rest, None, result)
