"""The public functions of loading: ``load_config``, ``load_tokenizer``, ``plan`` and ``load``."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from core.checkpoint import Checkpoint, open_checkpoint
from core.config import ModelConfig
from core.device import check_process, describe
from core.errors import TokenizerError
from core.loading import memory
from core.loading.ahead import cancel_ahead, compile_ahead
from core.loading.configure import configure, read_generation_config
from core.loading.origin import Origin
from core.loading.prepared import Prepared, prepare
from core.loading.report import LoadReport
from core.registry import claims, status
from core.weights import Plan
from core.weights.load import Progress, execute
from core.weights.recipes import Quantize, recipe
from core.weights.treatment import Treatment

if TYPE_CHECKING:
    from core.language_model import LanguageModel
    from core.text import NativeTokenizer, Tokenizer


def load_config(
    source: str | os.PathLike[str],
    *,
    plugin: Any = None,
    strict: bool = False,
    revision: str | None = None,
    format: str | None = None,
) -> ModelConfig:
    """Reads and validates a checkpoint's config with the plugin that claims its ``model_type``.

    Args:
        source: directory, hub repository ``org/name`` or ``demo:NAME``.
        plugin: overrides the choice of plugin (see ``core.load``).
        strict: refuse keys that are not read.
        revision: branch, tag or commit of a hub repository.
        format: ``"hf"`` or ``"mistral"``, as for ``core.load``.

    Raises:
        CheckpointError, ConfigError, PluginError: see ``core.load``.
    """
    checkpoint = open_checkpoint(source, revision=revision, download=False, format=format)
    return configure(checkpoint, plugin, strict)[2]


def load_tokenizer(source: str | os.PathLike[str], *, revision: str | None = None) -> Tokenizer | NativeTokenizer:
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
    dtype: mx.Dtype | str | None = None,
    quantize: Quantize | None = None,
    quantize_embeddings: bool = True,
    quantize_head: bool = True,
    dequantize: bool = False,
    approximate: bool = False,
    revision: str | None = None,
    format: str | None = None,
) -> Plan:
    """Returns what ``core.load`` would do, without reading weights. Of a hub repository, only headers are fetched.

    Arguments and errors are those of ``core.load``, but tensors that do not fit are reported in the plan, not raised.
    """
    return prepare(
        source,
        plugin=plugin,
        strict=strict,
        dtype=dtype,
        revision=revision,
        format=format,
        treatment=_treatment(quantize, quantize_embeddings, quantize_head, dequantize, approximate),
    ).plan


def load(
    source: str | os.PathLike[str],
    *,
    plugin: Any = None,
    tokenizer: bool = True,
    dtype: mx.Dtype | str | None = None,
    quantize: Quantize | None = None,
    quantize_embeddings: bool = True,
    quantize_head: bool = True,
    dequantize: bool = False,
    approximate: bool = False,
    lazy: bool = False,
    strict: bool = False,
    check_finite: bool = True,
    check_memory: bool = True,
    progress: Progress | None = None,
    revision: str | None = None,
    format: str | None = None,
) -> LanguageModel:
    """Loads a model.

    Args:
        source: directory, hub repository ``org/name`` (downloaded unless it is cached) or ``demo:NAME``.
        plugin: the plugin to use instead of the one that the registry would choose: a module or object with the hooks,
            the name of an installed distribution, or a module's dotted path.
        tokenizer: load the tokenizer too; without one, ``generate`` takes and returns ids.
        dtype: compute dtype, or its name (``"bfloat16"``); None takes the checkpoint's, or float32 for quantized
            weights and experts on a CPU.
        quantize: quantize the weights as they are read, block by block, from the dtype of the file: bits (``4``), a
            mode of MLX with its defaults (``"mxfp4"``), a ``core.weights.Quantization``, a mixed recipe of mlx-lm's by
            name (``"mixed_4_6"``), or patterns of the checkpoint's names to any of these or False
            (``{"*.v_proj": 6, "lm_head": False, "*": 4}``), of which the first that matches counts. Matrices that the
            plugin excludes, such as routers, stay in full precision. So do matrices whose rows the group size does not
            divide; the report notes them.
        quantize_embeddings, quantize_head: whether those are quantized; where they share a matrix, both must be True.
        dequantize: turn quantized weights into floats, in the dtype of their scales; with ``quantize``, before that.
        approximate: keep the scales and biases of GPTQ and AWQ weights in float16 even where that rounds, instead of
            float32; ``report.weight_error`` is the largest error of a weight.
        lazy: read weights at their first use, which must then be in the thread that loads.
        strict: refuse keys of ``config.json`` and ``generation_config.json`` that are not read.
        check_finite: refuse NaN and infinity in the weights, which costs about 0.2 s for a gigabyte of floats on a CPU.
        check_memory: refuse a model that is larger than the device's memory, and warn of a tight fit.
        progress: called with the bytes loaded so far and the total; a download then shows the hub client's bars.
        revision: branch, tag or commit of a hub repository.
        format: ``"hf"`` or ``"mistral"`` (``params.json`` and ``consolidated*.safetensors``), for checkpoints that hold
            both; None takes the first of these that is there, and the report notes it.

    Raises:
        CheckpointError: files are absent or damaged.
        ConfigError: the config is malformed, or for no causal language model.
        PluginError: no plugin claims the type, two packages do, or the plugin is broken.
        WeightsError: tensors and config do not fit, or are not finite.
        TokenizerError: there is no tokenizer; raised before any weight is read.
        InsufficientMemoryError: the model is larger than the memory.
        QuantizationError: the weights are quantized already, or in a way that is not supported.
        UsageError: ``dtype`` is not a dtype, ``quantize`` asks for what the installed MLX does not have, or this
            process was forked from one that has used a model.
    """
    from core.language_model import LanguageModel

    check_process()
    shown = progress is not None
    prepared = prepare(
        source,
        plugin=plugin,
        strict=strict,
        dtype=dtype,
        revision=revision,
        format=format,
        progress=shown,
        treatment=_treatment(quantize, quantize_embeddings, quantize_head, dequantize, approximate),
    )
    prepared.plan.check()
    if tokenizer and not prepared.checkpoint.has("tokenizer.json"):
        _try_tokenizer(prepared.checkpoint)
    if check_memory:
        memory.check_memory(prepared.plan, prepared.config)
    checkpoint = prepared.checkpoint.fetch_weights()
    text = _tokenizer(checkpoint) if tokenizer else None
    started = time.perf_counter()
    if not lazy:
        compile_ahead(prepared.model, prepared.plan)
    try:
        loss = execute(
            prepared.plan, prepared.model, checkpoint, lazy=lazy, check_finite=check_finite, progress=progress
        )
    except BaseException:
        cancel_ahead()
        raise
    report = LoadReport(
        plan=prepared.plan,
        claim=prepared.bound.claim,
        device=describe(),
        stray_files=checkpoint.stray,
        shadowed=_shadowed(prepared),
        seconds=0.0 if lazy else time.perf_counter() - started,
        weight_error=loss,
    )
    prepared.bound.model_loaded(prepared.model, report)
    if not lazy:
        # Also evaluates the arrays that blocks compute for themselves: MLX evaluates an array only in the thread that
        # made it, and other threads may use a model that one thread has loaded.
        mx.eval(prepared.model)
    generation = read_generation_config(checkpoint)
    origin = Origin(checkpoint, prepared.raw_config, prepared.bound)
    return LanguageModel(prepared.model, prepared.config, text, report, generation, origin)


def _treatment(
    quantize: Quantize | None, embeddings: bool, head: bool, dequantize: bool, approximate: bool
) -> Treatment:
    asked = None if quantize is None else recipe(quantize, quantize_embeddings=embeddings, quantize_head=head)
    return Treatment(asked, dequantize, approximate)


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer | NativeTokenizer:
    from core.text import load_tokenizer as load_text

    local = checkpoint.fetch_text().path
    assert local is not None  # a downloaded checkpoint is a directory
    return load_text(local)


def _try_tokenizer(checkpoint: Checkpoint) -> None:
    """Checks before any weight is read that a missing ``tokenizer.json`` is replaced by another supported file.

    The error of the text package says which file was found and what to do. The hint added here is that a model can be
    loaded without a tokenizer.

    Raises:
        TokenizerError: there is none that can be used.
    """
    try:
        _tokenizer(checkpoint)
    except TokenizerError as error:
        error.hint = " ".join(filter(None, (error.hint, "core.load(…, tokenizer=False) loads without one.")))
        error.args = (error._render(),)
        raise


def _shadowed(prepared: Prepared) -> tuple[str, ...]:
    found = claims()
    mine = prepared.bound.claim
    same = [c for c in found if c.model_type == prepared.config.model_type and c != mine]
    # Plugins given in this process are not among the discovered claims, but they shadow them too.
    found = found if mine in found else [mine, *found]
    return tuple(f"{claim}: {status(claim, found)}" for claim in same)
