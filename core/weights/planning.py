"""Makes the plan of a load: fits the skeleton to the checkpoint, and checks every tensor against it. Reads headers
only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint import TensorInfo
from core.errors import QuantizationError
from core.nn import CacheSpec
from core.weights.compute import compute_dtype, memory_dtype
from core.weights.dtypes import FLOATS, PACKED
from core.weights.fit import Fitter, Parameter, check_rows_cover
from core.weights.nodes import Leaf, Node, Operation, leaves, outer_operation, refuse_repeats
from core.weights.plan import Entry, Mismatch, Plan
from core.weights.quantization import QuantizationConfig
from core.weights.rules import WeightMap, reason_for
from core.weights.shapes import mismatches
from core.weights.summary import summarise
from core.weights.treatment import Treatment
from core.weights.tree import all_arrays


def make_plan(
    model: nn.Module,
    weight_map: WeightMap,
    tensors: Mapping[str, TensorInfo],
    *,
    source: str,
    model_type: str,
    plugin: str,
    layout: str,
    cache_specs: tuple[CacheSpec, ...],
    quantization: QuantizationConfig | None = None,
    dtype: mx.Dtype | None = None,
    where: Callable[[str], str] = str,
    config_name: str = "config.json",
    unread_keys: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    treatment: Treatment | None = None,
) -> Plan:
    """Fits a skeleton to a checkpoint and plans its load.

    Args:
        model: the skeleton; modules are quantized and fused projections split where the headers require it.
        weight_map: the plugin's.
        tensors: headers.
        dtype: of activations and of all float parameters; None: as ``core.weights.compute`` chooses.
        where: how an error names a file of the checkpoint.
        config_name: the file that the config came from.
        treatment: what the load quantizes or dequantizes.

    Raises:
        QuantizationError: config and tensors disagree on quantization.
        PluginError: the plugin's map does not fit its own model.
    """
    rows = weight_map.expand()
    treatment = treatment or Treatment()
    _check_quantized(tensors, quantization, where(config_name))
    _check_treatment(treatment, quantization, where(config_name))
    fitter = Fitter(model, tensors, quantization, where, treatment)
    parameters = [parameter for row in rows for parameter in fitter.fit(row)]
    arrays = all_arrays(model)
    check_rows_cover(list(arrays), {parameter.path for parameter in parameters}, plugin)
    order = {path: place for place, path in enumerate(arrays)}
    parameters.sort(key=lambda parameter: order[parameter.path])
    compute = dtype or compute_dtype(model, parameters, tensors)
    missing: dict[str, str] = {}
    mismatched: list[Mismatch] = []
    entries: list[Entry] = []
    for parameter in parameters:
        problems = mismatches(parameter, tensors)
        absent = [name for name in leaves(parameter.source) if name not in tensors]
        missing.update(dict.fromkeys(absent, parameter.path))
        mismatched += problems
        if not problems and not absent:
            entries.append(_entry(parameter, tensors, compute, dtype is None))
    # The sources of one computation are read once, but each of its results names them.
    read = {_computation(parameter): parameter.source for parameter in parameters}
    sources = [name for source in read.values() for name in leaves(source)]
    # A map may name both a module and that module's weight; only here this is noticed.
    refuse_repeats("parameter", [parameter.path for parameter in parameters])
    refuse_repeats("tensor", sources)
    claimed = set(sources)
    left_over = [name for name in tensors if name not in claimed]
    ignored = weight_map.expand_ignored()
    reasons = {name: why for name in left_over if (why := reason_for(name, ignored)) is not None}
    used = {leaf for row in rows for leaf in leaves(row.source)}
    return Plan(
        source=source,
        model_type=model_type,
        plugin=plugin,
        layout=layout,
        entries=tuple(entries),
        missing=missing,
        unexpected=tuple(name for name in left_over if name not in reasons),
        mismatched=tuple(mismatched),
        ignored=reasons,
        cache_specs=cache_specs,
        compute_dtype=compute,
        unread_keys=unread_keys,
        notes=notes + _unused_overrides(quantization, used) + fitter.notes() + _imported(entries, quantization),
    )


def coverage(weight_map: WeightMap, tensors: Mapping[str, TensorInfo]) -> tuple[int, float]:
    """How well a map fits a checkpoint, to recognise its layout: how many tensors it uses, then the share of its
    sources found.

    The number comes first, because a config with the wrong number of experts asks for many tensors that no layout has.
    """
    names = {leaf for row in weight_map.expand() for leaf in leaves(row.source)}
    claimed = [name for name in tensors if name in names or name.rpartition(".")[0] in names]
    found = {name if name in names else name.rpartition(".")[0] for name in claimed}
    return len(claimed), len(found) / max(1, len(names))


def _check_quantized(tensors: Mapping[str, TensorInfo], quantization: QuantizationConfig | None, where: str) -> None:
    packing = None if quantization is None else quantization.packing
    if packing is not None and not any(name.endswith(".qweight") for name in tensors):
        raise QuantizationError(
            f"the config says that the weights are quantized with {packing.method!r}, but no tensor is a qweight",
            where=where,
            hint="Take quantization_config out of the file if the weights are in full precision.",
        )
    if quantization is not None and not any(name.endswith(".scales") for name in tensors):
        raise QuantizationError(
            f"the config says that the weights are quantized ({quantization.default}), but no tensor has scales",
            where=where,
            hint="Take the quantization block out of the file if the weights are in full precision.",
        )


def _check_treatment(treatment: Treatment, quantization: QuantizationConfig | None, where: str) -> None:
    if treatment.recipe is not None and quantization is not None and not treatment.dequantize:
        raise QuantizationError(
            f"the weights are quantized already ({quantization.default}), and quantize= would do it again",
            where=where,
            hint="Add dequantize=True (--dequantize) to turn them into floats first; the first rounding remains.",
        )


def _imported(entries: list[Entry], quantization: QuantizationConfig | None) -> tuple[str, ...]:
    """Notes on the conversion of another tool's packing."""
    kept = [
        entry
        for entry in entries
        if (made := outer_operation(entry.source)) is not None and made.kept is not None and entry.storage in FLOATS
    ]
    if not kept or quantization is None or quantization.packing is None:
        return ()
    what = f"{quantization.packing.method} weights: the integers are kept"
    if kept[0].dtype == mx.float16:
        return (f"{what}; scales and biases are in float16, which rounds about half of the biases",)
    extra = sum(entry.nbytes for entry in kept) // 2
    return (f"{what}; scales and biases are in float32, which is exact and takes {extra:,} bytes more than float16",)


def _computation(parameter: Parameter) -> object:
    """A key that is equal for the tensors of a module that one computation makes."""
    if outer_operation(parameter.source) is None:
        return parameter.path
    return parameter.path.rpartition(".")[0]


def _stored_dtype(node: Node, tensors: Mapping[str, TensorInfo]) -> str:
    """A tensor's dtype in a file of MLX's format: its dtype in this file, unless it is computed."""
    if isinstance(node, Leaf):
        return tensors[node.name].dtype
    found = _stored_dtype(node.parts[0], tensors)
    return node.storage(found) if isinstance(node, Operation) else found


def _entry(parameter: Parameter, tensors: Mapping[str, TensorInfo], compute: mx.Dtype, free: bool) -> Entry:
    storage = _stored_dtype(parameter.source, tensors)
    dtype = mx.uint32 if storage == PACKED else mx.uint8
    if storage in FLOATS:
        dtype = memory_dtype(parameter, storage, compute) if free else compute
    operation = outer_operation(parameter.source)
    if operation is not None and operation.kept is not None and storage in FLOATS:
        dtype = operation.kept
    return Entry(parameter.path, parameter.source, tuple(parameter.array.shape), storage, dtype, parameter.settings)


def _unused_overrides(quantization: QuantizationConfig | None, used: set[str]) -> tuple[str, ...]:
    names = [] if quantization is None else [name for name in quantization.overrides if name not in used]
    if not names:
        return ()
    return (f"the config's quantization settings for {summarise(names)} name no layer of this checkpoint",)
