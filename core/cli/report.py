"""An inspection as text: a few aligned lines about the checkpoint, the plugin and the plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from core.cli.inspection import CheckpointFacts, Inspection, Key, MatrixKind, PlanFacts, PluginFacts, QuantizationFacts
from core.cli.recipe import MLX
from core.cli.terminal import cell, clean, size, table
from core.weights import Quantization
from core.weights.summary import summarise

_LABEL = 16
_SHOWN = 3
Lines = Iterator[tuple[str, str]]


def report(found: Inspection) -> list[str]:
    """The lines of a report; errors are not in it."""
    lines = [clean(found.source)]
    if found.checkpoint is not None:
        lines += _section("checkpoint", _checkpoint(found.checkpoint))
    lines += _section("plugin", _plugin(found.plugin))
    if found.plan is not None:
        lines += _section("plan", _plan(found.plan, found))
    return lines


def key_lines(keys: Iterable[Key]) -> list[str]:
    """The table of tensors: one line each, columns without spaces in them."""
    header = ("TENSOR", "STORED", "SHAPE", "OPERATION", "PARAMETER", "DTYPE", "PARAMETER_SHAPE")
    return table([header, *(_row(key) for key in keys)])


def _section(title: str, facts: Iterable[tuple[str, str]]) -> list[str]:
    return ["", title, *(f"  {label:{_LABEL}}{clean(text)}".rstrip() for label, text in facts)]


def _checkpoint(facts: CheckpointFacts) -> Lines:
    yield "model type", (facts.model_type or "unknown") + _in_brackets(", ".join(facts.architectures))
    if facts.revision:
        yield "revision", facts.revision
    if facts.shards is not None:
        count = f"{len(facts.shards)} files: " if len(facts.shards) > 1 else ""
        yield "weights", count + summarise_files(facts.shards)
    if facts.stray:
        yield "stray files", summarise_files(facts.stray) + " (not read)"
    if facts.alternates:
        yield "alternates", summarise_files(facts.alternates) + " (not read)"
    if facts.tensors is not None:
        parameters = "" if facts.parameters is None else f"{facts.parameters:,} parameters, "
        yield "tensors", f"{facts.tensors:,}, {parameters}{size(facts.bytes or 0)}"
        stored = (f"{name} ({each.tensors:,} tensors, {size(each.bytes)})" for name, each in facts.dtypes.items())
        yield "stored as", ", ".join(stored)
    yield from _quantization(facts.quantization)
    yield "tokenizer", facts.tokenizer_file or "none: core.load(…, tokenizer=False), generate --ids"
    without = "none" if facts.chat_format is None else f"none: {facts.chat_format}"
    yield "chat template", facts.chat_template or without


def _quantization(facts: QuantizationFacts | None) -> Lines:
    if facts is None:
        yield "quantization", "none"
        return
    if facts.method != MLX:
        known = facts.method in ("gptq", "awq")
        yield "quantization", f"{facts.method} ({'imported' if known else 'no method that is supported'})"
        return
    recipes = {_settings(kind) for kind in facts.matrices if kind.bits is not None}
    if len(recipes) == 1:
        yield "quantization", recipes.pop()
        plain = [f"{kind.names}{_times(kind.count)}" for kind in facts.matrices if kind.bits is None]
        if plain:
            yield "not quantized", ", ".join(plain)
        return
    yield "quantization", "mixed"
    for kind in facts.matrices:
        yield "", f"{_settings(kind)}: {kind.names}{_times(kind.count)}"


def _settings(kind: MatrixKind) -> str:
    if kind.bits is None or kind.group_size is None:
        return "not quantized"
    return str(Quantization(kind.bits, kind.group_size, kind.mode or "affine"))


def _plugin(facts: PluginFacts | None) -> Lines:
    if facts is None:
        yield "loaded by", "nobody"
        return
    package = f"{facts.distribution} {facts.version}, " if facts.distribution else ""
    yield "loaded by", f"{facts.value} ({package}{facts.tier})"
    if facts.file:
        yield "file", facts.file
    for claim, why in facts.others.items():
        yield "not by", f"{claim}: {why}"


def _plan(plan: PlanFacts, found: Inspection) -> Lines:
    yield "layout", plan.layout
    yield "in memory", f"{size(plan.bytes)}, {plan.parameters:,} parameters"
    device = "" if found.memory is None else f" on {found.memory.device}"
    yield "computes in", plan.precision + device
    if found.blas is not None:
        yield "products by", str(found.blas)
    yield "cache", _cache(plan)
    for group in plan.fused:
        stacked = f", {group.stacked} stacked" if group.stacked else ""
        yield "fused", f"{group.parameter} = {' + '.join(group.parts)}{stacked}{_times(group.count)}"
    if found.memory is not None:
        memory = found.memory
        limit = "" if memory.available is None else f" of {size(memory.available)}"
        yield "memory", f"{memory.verdict}: {size(memory.needed)}{limit}, with a cache of {memory.tokens:,} tokens"
    yield "unread keys", ", ".join(plan.unread_keys) or "none"
    for label, names in (("missing", plan.missing), ("unexpected", plan.unexpected)):
        yield label, summarise(names) or "none"
    for mismatch in plan.mismatched[:_SHOWN]:
        yield (
            "mismatched",
            f"{mismatch.tensor}: expected {mismatch.expected}, found {mismatch.found} in {mismatch.shard}",
        )
    if len(plan.mismatched) > _SHOWN:
        yield "mismatched", f"and {len(plan.mismatched) - _SHOWN:,} more; --keys shows all"
    if not plan.mismatched:
        yield "mismatched", "none"
    for reason in sorted(set(plan.ignored.values())):
        yield "ignored", f"{summarise(name for name, why in plan.ignored.items() if why == reason)}: {reason}"
    for note in plan.notes:
        yield "note", note


def _cache(plan: PlanFacts) -> str:
    text = f"{size(plan.kv_bytes_per_token)} a token"
    if plan.context is not None and plan.kv_bytes_at_context is not None:
        text += f", {size(plan.kv_bytes_at_context)} at the full context of {plan.context:,}"
    return text + (f", window {plan.window:,}" if plan.window is not None else "")


def _row(key: Key) -> tuple[str, ...]:
    columns = (key.tensor, key.stored, _shape(key.shape), key.operation, key.parameter, key.dtype)
    return (*(cell(column or "") for column in columns), cell(_shape(key.parameter_shape)))


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else f"[{','.join(map(str, shape))}]"


def summarise_files(names: tuple[str, ...]) -> str:
    """A few file names: the first and the last where there are many."""
    return ", ".join(names) if len(names) <= _SHOWN else f"{names[0]} … {names[-1]}"


def _times(count: int) -> str:
    return f" ({count} times)" if count > 1 else ""


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""
