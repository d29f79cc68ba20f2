"""From a path or hub id to a plan, and from a plan to a ready model: the one road that every load takes.

Each stage is a function of the one before it, and nothing reads a weight before the plan has been checked. Knows no
architecture: what differs between them is asked of the plugin that the registry has bound.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import mlx.core as mx

from core.checkpoint import Checkpoint, open_checkpoint
from core.config import ModelConfig
from core.device import describe, memory_limits
from core.errors import ConfigError, CoreError, InsufficientMemoryError, TokenizerError, WeightsError
from core.nn import CacheSpec, Decoder
from core.registry import BoundPlugin, Claim, bind, choose, claims, status
from core.weights import Plan, QuantizationConfig, WeightMap
from core.weights.dtypes import spelling
from core.weights.load import Progress, execute
from core.weights.plan import coverage, make_plan

if TYPE_CHECKING:
    from core.language_model import LanguageModel
    from core.text import Tokenizer

LAYOUTS = ("hf", "mlx")
"""Arrangements of tensors that a plugin may have a weight map for, in the order in which ties are broken."""

_CONTEXT_FOR_MEMORY = 4096  # tokens of cache counted when a model is compared with the device's memory
_building = threading.RLock()  # a plugin may load another model while it builds its own


class MemoryWarning(UserWarning):
    """A model takes more memory than the device recommends."""


@dataclass(frozen=True)
class LoadReport:
    """What a load did, to read or to paste.

    Attributes:
        plan: which tensors went where, and everything that was left unread.
        claim: the plugin's claim; shadowed: other claims of the type.
        device: what the model was loaded onto.
        stray_files: weight files of the checkpoint that are no part of the model.
        seconds: how long reading the weights took; 0 for a lazy load.
    """

    plan: Plan
    claim: Claim
    device: str
    stray_files: tuple[str, ...] = ()
    shadowed: tuple[str, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        plan = self.plan
        lines = [
            f"{plan.source}: {plan.model_type}, loaded by {plan.plugin}, layout {plan.layout}",
            f"  {plan.parameters:,} parameters, {plan.bytes:,} bytes, "
            f"computes in {spelling(plan.compute_dtype)} on {self.device}",
        ]
        if plan.unread_keys:
            lines.append(f"  config keys nobody read: {', '.join(plan.unread_keys)}")
        if plan.ignored:
            lines.append(f"  tensors left unread: {len(plan.ignored)}")
        if self.stray_files:
            lines.append(f"  files that are no part of the model: {', '.join(self.stray_files)}")
        if self.shadowed:
            lines.append(f"  other claims of {plan.model_type}: {'; '.join(self.shadowed)}")
        return "\n".join(lines + [f"  {note}" for note in plan.notes])


@dataclass
class BuiltModel:
    """A model without a checkpoint.

    Attributes:
        model, config: as in ``LanguageModel``; plugin: the bound hooks, for their weight maps.
    """

    model: Decoder
    config: ModelConfig
    plugin: BoundPlugin


@dataclass
class Prepared:
    """A load before its weights: everything that can be known from names, headers and config."""

    checkpoint: Checkpoint
    raw_config: dict[str, Any]
    bound: BoundPlugin
    config: ModelConfig
    model: Decoder = field(repr=False)
    plan: Plan = field(repr=False)


def load_config(
    source: str | os.PathLike[str], *, plugin: Any = None, strict: bool = False, revision: str | None = None
) -> ModelConfig:
    """Reads and validates a checkpoint's config with the plugin that claims its ``model_type``.

    Args:
        source: directory, hub repository ``org/name`` or ``demo:NAME``.
        plugin: overrides the choice of plugin (see ``core.load``).
        strict: refuse keys that nobody reads.
        revision: branch, tag or commit of a hub repository.

    Raises:
        CheckpointError, ConfigError, PluginError: see ``core.load``.
    """
    checkpoint = open_checkpoint(source, revision=revision, download=False)
    return _configure(checkpoint, plugin, strict)[2]


def load_tokenizer(source: str | os.PathLike[str], *, revision: str | None = None) -> Tokenizer:
    """Loads a checkpoint's tokenizer alone.

    Raises:
        TokenizerError: there is none, or it is damaged.
    """
    return _tokenizer(open_checkpoint(source, revision=revision, download=False))


def plan(
    source: str | os.PathLike[str],
    *,
    plugin: Any = None,
    strict: bool = False,
    dtype: mx.Dtype | None = None,
    revision: str | None = None,
) -> Plan:
    """Says what ``core.load`` would do, without reading a weight byte; of a hub repository, only headers are fetched.

    Arguments and errors are those of ``core.load``, but tensors that do not fit are reported in the plan, not raised.
    """
    return prepare(source, plugin=plugin, strict=strict, dtype=dtype, revision=revision).plan


def load(
    source: str | os.PathLike[str],
    *,
    plugin: Any = None,
    tokenizer: bool = True,
    dtype: mx.Dtype | None = None,
    lazy: bool = False,
    strict: bool = False,
    check_finite: bool = True,
    check_memory: bool = True,
    progress: Progress | None = None,
    revision: str | None = None,
) -> LanguageModel:
    """Loads a model.

    Args:
        source: directory, hub repository ``org/name`` (fetched unless it is cached) or ``demo:NAME``.
        plugin: the plugin to use instead of the one that the registry would choose: a module or object with the hooks,
            the name of an installed distribution, or a module's dotted path.
        tokenizer: load the tokenizer too; without one, ``generate`` takes and gives ids.
        dtype: compute dtype; None takes the checkpoint's, or float32 for quantized weights and experts on a CPU.
        lazy: read weights when they are first used, which must then be in the thread that loads.
        strict: refuse config keys that nobody reads.
        check_finite: refuse NaN and infinity in the weights, which costs about 0.2 s for a gigabyte of floats on a CPU.
        check_memory: refuse a model that is larger than the device's memory, and warn of a tight fit.
        progress: called with the bytes loaded so far and in all; a download from the hub then shows the client's bars.
        revision: branch, tag or commit of a hub repository.

    Raises:
        CheckpointError: files are absent or damaged.
        ConfigError: the config is malformed, or for no causal language model.
        PluginError: nobody claims the type, two packages do, or the plugin is broken.
        WeightsError: tensors and config do not fit, or are not finite.
        TokenizerError: there is no tokenizer; said before any weight is read.
        InsufficientMemoryError: the model is larger than the memory.
    """
    from core.language_model import LanguageModel

    shown = progress is not None
    prepared = prepare(source, plugin=plugin, strict=strict, dtype=dtype, revision=revision, progress=shown)
    prepared.plan.check()
    if tokenizer and not prepared.checkpoint.has("tokenizer.json"):
        _no_tokenizer(prepared.checkpoint)
    if check_memory:
        _check_memory(prepared.plan)
    checkpoint = prepared.checkpoint.fetch_weights()
    text = _tokenizer(checkpoint) if tokenizer else None
    started = time.perf_counter()
    execute(prepared.plan, prepared.model, checkpoint, lazy=lazy, check_finite=check_finite, progress=progress)
    report = LoadReport(
        plan=prepared.plan,
        claim=prepared.bound.claim,
        device=describe(),
        stray_files=checkpoint.stray,
        shadowed=_shadowed(prepared),
        seconds=0.0 if lazy else time.perf_counter() - started,
    )
    prepared.bound.model_loaded(prepared.model, report)
    if not lazy:
        # What blocks compute for themselves, too: MLX evaluates an array only in the thread that made it, and a model
        # that one thread has loaded serves others.
        mx.eval(prepared.model)
    generation = checkpoint.read_json("generation_config.json") if checkpoint.has("generation_config.json") else {}
    return LanguageModel(prepared.model, prepared.config, text, report, generation)


def build(config: Mapping[str, Any], *, plugin: Any = None) -> BuiltModel:
    """Builds a randomly initialised model from a config, to train it or to measure its shape.

    The parameters are unevaluated and drawn from MLX's global random state, so that ``mx.random.seed`` decides them.

    Args:
        config: as parsed from a ``config.json``, with ``model_type``.

    Raises:
        ConfigError, PluginError: as for ``load``.
    """
    bound, parsed = _configured(dict(config), "config", plugin)
    model, _ = _build(bound, parsed)
    return BuiltModel(model, parsed, bound)


def prepare(
    source: str | os.PathLike[str],
    *,
    plugin: Any = None,
    strict: bool = False,
    dtype: mx.Dtype | None = None,
    revision: str | None = None,
    progress: bool = False,
) -> Prepared:
    """Everything up to the first weight byte."""
    checkpoint = open_checkpoint(source, revision=revision, download=False, progress=progress)
    return prepare_opened(checkpoint, plugin=plugin, strict=strict, dtype=dtype)


def prepare_opened(
    checkpoint: Checkpoint, *, plugin: Any = None, strict: bool = False, dtype: mx.Dtype | None = None
) -> Prepared:
    """``prepare``, of a checkpoint that is open already."""
    raw, bound, config = _configure(checkpoint, plugin, strict)
    quantization = _located(lambda: QuantizationConfig.from_config(raw), checkpoint.where("config.json"))
    model, specs = _skeleton(bound, config)
    layout, weight_map, notes = _recognise(bound, config, checkpoint)
    made = make_plan(
        model,
        weight_map,
        checkpoint.tensors,
        source=checkpoint.source,
        model_type=config.model_type,
        plugin=bound.name,
        layout=layout,
        cache_specs=specs,
        quantization=quantization,
        dtype=dtype,
        where=checkpoint.where,
        unread_keys=tuple(config.unread_keys(raw)),
        notes=notes,
    )
    return Prepared(checkpoint, raw, bound, config, model, made)


def _skeleton(bound: BoundPlugin, config: ModelConfig) -> tuple[Decoder, tuple[CacheSpec, ...]]:
    """The model with parameters that will be replaced. MLX's global random state is left alone."""
    with _building:
        state: Any = mx.random.state
        high, low = state[0].tolist()
        try:
            return _build(bound, config)
        finally:
            mx.random.seed((high << 32) | low)  # a seed's two halves are the key


def _build(bound: BoundPlugin, config: ModelConfig) -> tuple[Decoder, tuple[CacheSpec, ...]]:
    """The model with unevaluated parameters, and its blocks' cache specs."""
    indices = range(config.num_hidden_layers)
    model = bound.build_model(config, [bound.build_block(config, index) for index in indices])
    specs = tuple(bound.make_cache(config, index) for index in indices)
    model.set_cache_specs(specs)
    model.eval()
    return model, specs


def _configure(checkpoint: Checkpoint, plugin: Any, strict: bool) -> tuple[dict[str, Any], BoundPlugin, ModelConfig]:
    raw: dict[str, Any] = checkpoint.read_json("config.json")
    where = checkpoint.where("config.json")
    bound, config = _configured(raw, where, plugin)
    unread = config.unread_keys(raw)
    if strict and unread:
        raise ConfigError(
            f"nobody reads the config keys {', '.join(map(repr, unread))}",
            where=where,
            hint=f"Load without strict=True to ignore them, or let {bound.name} read them or declare them harmless.",
        )
    return raw, bound, config


def _configured(raw: dict[str, Any], where: str, plugin: Any) -> tuple[BoundPlugin, ModelConfig]:
    """The plugin for a config's ``model_type``, and what it reads there."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(
            "key 'model_type' is missing" if model_type is None else "key 'model_type' is not a string",
            where=where,
            expected='for instance "mistral"',
            found=None if model_type is None else repr(model_type),
            hint="It names the architecture, and nothing loads without it.",
        )
    bound = _located(lambda: bind(choose(model_type, plugin)), where)
    return bound, _located(lambda: bound.parse_config(raw), where)


def _recognise(
    bound: BoundPlugin, config: ModelConfig, checkpoint: Checkpoint
) -> tuple[str, WeightMap, tuple[str, ...]]:
    """The layout whose map accounts for most of the checkpoint's tensors."""
    maps = {layout: bound.weight_map(config, layout) for layout in LAYOUTS}
    known = {layout: found for layout, found in maps.items() if found is not None}
    if not known:
        raise WeightsError(f"plugin {bound.name} has no weight map for any layout", expected=" or ".join(LAYOUTS))
    covered = {layout: coverage(found, checkpoint.tensors) for layout, found in known.items()}
    layout = max(covered, key=lambda name: covered[name])
    notes = []
    if checkpoint.alternates:
        notes.append(f"the weights are there twice; not read: {', '.join(checkpoint.alternates)}")
    return layout, known[layout], tuple(notes)


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    from core.text import load_tokenizer as load_text

    local = checkpoint.fetch_text().path
    assert local is not None  # what is fetched is a directory
    return load_text(local)


@dataclass(frozen=True)
class MemoryFit:
    """How a plan compares with the device's memory.

    Attributes:
        tokens: length of the sequence whose cache is counted.
        needed: bytes of the weights and of that cache.
        recommended, available: bytes that the device recommends and has; None where it does not say.
    """

    tokens: int
    needed: int
    recommended: int | None
    available: int | None

    @property
    def verdict(self) -> Literal["fits", "tight", "too large"]:
        """``tight`` loads with a warning, ``too large`` is refused."""
        if self.available is not None and self.needed > self.available:
            return "too large"
        return "tight" if self.recommended is not None and self.needed > self.recommended else "fits"


def memory_fit(plan: Plan) -> MemoryFit:
    """Whether a planned model fits the default device."""
    tokens = _CONTEXT_FOR_MEMORY
    return MemoryFit(tokens, plan.bytes + plan.kv_bytes(tokens), *memory_limits())


def _no_tokenizer(checkpoint: Checkpoint) -> NoReturn:
    """The text package says which other file is there and what to do; here, that a model can do without.

    Raises:
        TokenizerError: always.
    """
    try:
        _tokenizer(checkpoint)
    except TokenizerError as error:
        error.hint = " ".join(filter(None, (error.hint, "core.load(…, tokenizer=False) loads without one.")))
        error.args = (error._render(),)
        raise
    raise AssertionError("a tokenizer was read without its file")


def _check_memory(plan: Plan) -> None:
    fit = memory_fit(plan)
    figures = f"{_gib(plan.bytes)} of weights and {_gib(fit.needed - plan.bytes)} of cache for {fit.tokens} tokens"
    smaller = f"A 4-bit conversion takes about {_gib(plan.parameters * 9 // 16)}."
    if fit.verdict == "too large":
        raise InsufficientMemoryError(
            f"the model needs {figures}",
            where=plan.source,
            expected=f"at most {_gib(fit.available or 0)} on {describe()}",
            hint=f"{smaller} check_memory=False (--no-memory-check) tries anyway.",
        )
    if fit.verdict == "tight":
        warnings.warn(
            f"{plan.source} needs {figures}; {describe()} recommends at most {_gib(fit.recommended or 0)}. {smaller}",
            MemoryWarning,
            stacklevel=3,
        )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _shadowed(prepared: Prepared) -> tuple[str, ...]:
    found = claims()
    mine = prepared.bound.claim
    same = [c for c in found if c.model_type == prepared.config.model_type and c != mine]
    # What was given in this process is not among the claims that were found, and shadows them all the same.
    found = found if mine in found else [mine, *found]
    return tuple(f"{claim}: {status(claim, found)}" for claim in same)


def _located(action: Any, where: str) -> Any:
    """Runs ``action``; an error of core's that does not say where it lies is given ``where``."""
    try:
        return action()
    except CoreError as error:
        if error.where is None:
            error.where = where
            error.args = (error._render(),)
        raise
