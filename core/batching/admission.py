"""Checks a request and makes a ``Row`` of it; refuses a request that could never run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from core.batching.answer import TimedAnswer
from core.batching.groups import capacity_class
from core.batching.options import wanted
from core.batching.request import BatchRequest
from core.batching.row import Row
from core.errors import InsufficientMemoryError, UsageError
from core.language_model import LanguageModel
from core.nn import rotation_limit
from core.nn.rows import RowTemplate


class Admission:
    """Checks each request by itself, whatever else runs. Any thread may call it.

    Args:
        source: a ``LanguageModel``, or a ``core.nn.Decoder``.
        template: the kind of cache that each row gets.
        max_bytes: limit for all caches together.
        bounded: caches keep only the last tokens, so a request may be longer than its cache.
    """

    def __init__(self, source: LanguageModel | Any, template: RowTemplate, max_bytes: int, *, bounded: bool) -> None:
        self._source = source
        self._template = template
        self._max_bytes = max_bytes
        self._bounded = bounded
        self._rotation_limit = rotation_limit(source.model if isinstance(source, LanguageModel) else source)
        self._numbers = itertools.count()

    def row(self, prompt: Any, options: Mapping[str, Any]) -> Row:
        """The request as the engine runs it; ``Batch.submit`` says what may be asked for.

        Raises:
            UsageError, TokenizerError, ChatTemplateError: the request cannot be understood, or not be run in a batch.
            InsufficientMemoryError: its cache would not fit even alone.
        """
        asked = wanted(self._source, prompt, options, bounded=self._bounded)
        total = len(asked.prompt_ids) + asked.max_tokens
        if self._rotation_limit is not None and total > self._rotation_limit:
            raise UsageError(
                "the rotary frequencies of this model depend on the length of long sequences, which differs in a batch",
                expected=f"at most {self._rotation_limit:,} tokens for prompt and max_tokens together",
                found=f"{total:,}",
                hint="Ask for fewer max_tokens, or generate this request by itself.",
            )
        nbytes = self._template.row_bytes(capacity_class(total) if self._template.grows else 0)
        if nbytes > self._max_bytes:
            raise InsufficientMemoryError(
                "the request's cache would not fit, even alone",
                expected=f"at most {self._max_bytes:,} bytes",
                found=f"{nbytes:,} for {total:,} tokens",
                hint="Ask for fewer max_tokens, or give the batch more max_bytes.",
            )
        request = BatchRequest(next(self._numbers), asked.prompt_ids, asked.max_tokens, asked.sampling)
        return Row(request, TimedAnswer(asked), nbytes, asked.logprobs, asked.eos)
