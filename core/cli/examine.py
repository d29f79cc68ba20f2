"""Examines a checkpoint: every stage of a load up to the first weight byte, each as far as it goes.

What one stage cannot find out is an error of the inspection, and the next stage is tried all the same: a checkpoint
that nobody loads can still be described. The plan is the one that ``core.load`` executes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx

from core import blas
from core.checkpoint import Checkpoint, open_checkpoint
from core.cli.inspection import (
    SCHEMA,
    CheckpointFacts,
    DtypeFacts,
    Inspection,
    MemoryFacts,
    MismatchFacts,
    PlanFacts,
    PluginFacts,
    Problem,
)
from core.cli.keys import fused_groups, key_table
from core.cli.locate import locate
from core.cli.recipe import MLX, count_parameters, recipe_of
from core.device import describe
from core.errors import CoreError, UsageError
from core.loading import Prepared, memory_fit, prepare_opened, stated_context
from core.loading.configure import read_config
from core.registry import Claim, choose, claims, status
from core.weights.dtypes import spelling
from core.weights.recipes import recipe
from core.weights.treatment import Treatment

_CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_TOKENIZERS = ("tokenizer.json", "tekken.json")
_INSTRUCT = "Mistral's instruct format, [INST] … [/INST]"
_T = TypeVar("_T")


def examine(
    source: str,
    *,
    plugin: str | None = None,
    revision: str | None = None,
    format: str | None = None,
    dtype: mx.Dtype | None = None,
    strict: bool = False,
    keys: bool = False,
    quantize: int | str | None = None,
    dequantize: bool = False,
    approximate: bool = False,
) -> Inspection:
    """Inspects a checkpoint. Arguments are those of ``core.plan``; ``keys`` asks for the table of tensors.

    Raises:
        UsageError: the arguments contradict each other, or ``CORE_BLAS`` names no usable library. Every other error is
            in the inspection.
    """
    blas.check_setting()
    attempt = _Attempts()
    checkpoint = attempt(lambda: open_checkpoint(source, revision=revision, download=False, format=format))
    if checkpoint is None:
        return Inspection(SCHEMA, source, False, tuple(attempt.problems))
    facts = _checkpoint_facts(checkpoint, attempt)
    treatment = Treatment(None if quantize is None else recipe(quantize), dequantize, approximate)
    prepared = attempt(lambda: prepare_opened(checkpoint, plugin=plugin, dtype=dtype, treatment=treatment))
    plan = None if prepared is None else prepared.plan
    if plan is not None:
        attempt(plan.check)
        if strict and plan.unread_keys:
            attempt(lambda: prepare_opened(checkpoint, plugin=plugin, dtype=dtype, strict=True, treatment=treatment))
    claim = _claim(facts.model_type, plugin) if prepared is None else prepared.bound.claim
    return Inspection(
        schema=SCHEMA,
        source=source,
        ok=not attempt.problems,
        errors=tuple(attempt.problems),
        checkpoint=facts,
        plugin=None if claim is None else _plugin_facts(claim, facts.model_type),
        plan=None if prepared is None else _plan_facts(prepared),
        memory=None if prepared is None else _memory_facts(prepared),
        blas=None if prepared is None else blas.status(),
        keys=key_table(attempt(lambda: checkpoint.tensors) or {}, plan) if keys else None,
    )


class _Attempts:
    """Tries one thing after another and keeps the errors; several stages may meet the same one."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._advice: set[tuple[str | None, str | None]] = set()

    def __call__(self, action: Callable[[], _T]) -> _T | None:
        try:
            return action()
        except UsageError:
            raise
        except CoreError as error:
            problem = Problem(type(error).__name__, str(error))
            advice = (error.where, error.hint)  # two stages that meet one fault may word it differently
            if problem not in self.problems and (error.hint is None or advice not in self._advice):
                self.problems.append(problem)
            self._advice.add(advice)
            return None


def _checkpoint_facts(checkpoint: Checkpoint, attempt: _Attempts) -> CheckpointFacts:
    raw: dict[str, Any] = attempt(lambda: read_config(checkpoint)) or {}
    shards = attempt(lambda: checkpoint.shards)
    tensors = None if shards is None else attempt(lambda: checkpoint.tensors)
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    quantization = recipe_of(tensors or {}, raw)
    foreign = quantization is not None and quantization.method != MLX  # nobody here knows how it packs
    dtypes: dict[str, DtypeFacts] = {}
    for info in (tensors or {}).values():
        so_far = dtypes.get(info.dtype, DtypeFacts(0, 0))
        dtypes[info.dtype] = DtypeFacts(so_far.tensors + 1, so_far.bytes + info.nbytes)
    tokenizer = next((name for name in _TOKENIZERS if checkpoint.has(name)), None)
    template = _chat_template(checkpoint, attempt)
    return CheckpointFacts(
        path=None if checkpoint.path is None else str(checkpoint.path),
        revision=checkpoint.revision,
        model_type=model_type if isinstance(model_type, str) else None,
        architectures=tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        format=None if shards is None else checkpoint.format,
        shards=shards,
        stray=() if shards is None else checkpoint.stray,
        alternates=() if shards is None else checkpoint.alternates,
        tensors=None if tensors is None else len(tensors),
        parameters=None if tensors is None or foreign else count_parameters(tensors, raw),
        bytes=None if tensors is None else sum(info.nbytes for info in tensors.values()),
        dtypes=dict(sorted(dtypes.items())),
        quantization=quantization,
        tokenizer=tokenizer is not None,
        tokenizer_file=tokenizer,
        chat_template=template,
        chat_format=None if template is not None or tokenizer is None else _chat_format(checkpoint),
    )


def _chat_template(checkpoint: Checkpoint, attempt: _Attempts) -> str | None:
    """The file that holds the chat template; the first one that does wins, as when the tokenizer is loaded."""

    def has_template(name: str) -> bool:
        return name.endswith(".jinja") or bool((attempt(lambda: checkpoint.read_json(name)) or {}).get("chat_template"))

    return next((name for name in _CHAT_TEMPLATES if checkpoint.has(name) and has_template(name)), None)


def _chat_format(checkpoint: Checkpoint) -> str | None:
    """How conversations are written without a template, where the vocabulary tells; of local checkpoints only."""
    if checkpoint.path is None:
        return None
    from core.text import load_tokenizer

    try:
        return _INSTRUCT if load_tokenizer(checkpoint.path).can_chat else None
    except CoreError:  # for a load to say
        return None


def _claim(model_type: str | None, plugin: str | None) -> Claim | None:
    """Who would load it, where the load was refused for another reason."""
    try:
        return None if model_type is None else choose(model_type, plugin)
    except CoreError:
        return None


def _plugin_facts(claim: Claim, model_type: str | None) -> PluginFacts:
    found = claims()
    others = [other for other in found if other.model_type == model_type and other != claim]
    # An explicit choice is made against the order in which the others are ranked.
    why = {str(other): status(other, found) for other in others}
    if claim.tier == "explicit":
        why = {other: "overridden" if state == "active" else state for other, state in why.items()}
    file = locate(claim)
    return PluginFacts(
        value=claim.value,
        distribution=claim.distribution,
        version=claim.version,
        tier=claim.tier,
        file=None if file is None else str(file),
        others=why,
    )


def _plan_facts(prepared: Prepared) -> PlanFacts:
    plan = prepared.plan
    context = stated_context(prepared.config)
    windows = {spec.window for spec in plan.cache_specs if spec.window is not None}
    return PlanFacts(
        layout=plan.layout,
        parameters=plan.parameters,
        bytes=plan.bytes,
        compute_dtype=spelling(plan.compute_dtype),
        precision=plan.precision,
        context=context,
        window=max(windows, default=None),
        kv_bytes_per_token=plan.kv_bytes(1) - plan.kv_bytes(0),
        kv_bytes_at_context=None if context is None else plan.kv_bytes(context),
        fused=fused_groups(plan),
        missing=dict(plan.missing),
        unexpected=plan.unexpected,
        mismatched=tuple(MismatchFacts(m.tensor, m.shard, m.expected, m.found) for m in plan.mismatched),
        ignored=dict(plan.ignored),
        unread_keys=plan.unread_keys,
        notes=plan.notes,
    )


def _memory_facts(prepared: Prepared) -> MemoryFacts:
    fit = memory_fit(prepared.plan, prepared.config)
    return MemoryFacts(describe(), fit.tokens, fit.needed, fit.recommended, fit.available, fit.verdict)
