"""Generations as lines of JSON, for scripts: one object a line, on stdout.

``event`` says what a line is; later versions may add keys, and take none away.

``chunk``, with ``--stream``:
    text: newly finished, may be empty.
    id: of the token that finished it; null in the last chunk.

``result``, the last line:
    model: as it was named.
    text: null without a tokenizer.
    ids: an end-of-sequence token among them.
    finish_reason: as in ``core.generation.GenerationResult``.
    tool_calls: objects with ``id``, ``name`` and ``arguments``.
    tool_problem: why calls that were begun are none; null where nothing was wrong.
    settings: the fields of ``core.generation.Sampling``, with the seed that was used.
    statistics: those of ``core.generation.GenerationStats``: ``prompt_tokens``, ``prompt_seconds``,
        ``generated_tokens``, ``decode_seconds``, ``peak_memory`` in bytes; ``prompt_tps`` and ``decode_tps``, tokens a
        second.
    logprobs: with ``--logprobs`` only: for each id, an object with ``logprob`` and ``top``, a list of objects with
        ``id`` and ``logprob``.

What JSON has no number for is null. An error is no line: it goes to stderr, and the exit code tells.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.generation import GenerationChunk, GenerationResult
    from core.text.tool_calls import ToolCalls


def put_chunk(chunk: GenerationChunk) -> None:
    """Prints a piece of a generation."""
    _put({"event": "chunk", "text": chunk.text, "id": chunk.token_id})


def put_result(result: GenerationResult, *, model: str, text: str | None, found: ToolCalls) -> None:
    """Prints the end of a generation.

    Args:
        model: as it was named.
        text: what was said beside the calls; None without a tokenizer.
        found: the calls of tools, and their problem.
    """
    stats = result.stats
    line: dict[str, Any] = {
        "event": "result",
        "model": model,
        "text": text,
        "ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "tool_calls": [dataclasses.asdict(call) for call in found.calls],
        "tool_problem": found.problem,
        "settings": _fields(result.sampling),
        "statistics": {**_fields(stats), "prompt_tps": stats.prompt_tps, "decode_tps": stats.decode_tps},
    }
    logprobs = getattr(result, "logprobs", None)
    if logprobs is not None:
        tops: Any = getattr(result, "top_logprobs", None) or [()] * len(logprobs)
        line["logprobs"] = [
            {"logprob": logprob, "top": [{"id": i, "logprob": value} for i, value in top]}
            for logprob, top in zip(logprobs, tops, strict=True)
        ]
    _put(line)


def _fields(record: Any) -> dict[str, Any]:
    """A dataclass's fields, but those that are no data: code of a user's own."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {name: value for name, value in values.items() if name != "processors"}


def _put(line: dict[str, Any]) -> None:
    print(json.dumps(_plain(line), ensure_ascii=True, allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
