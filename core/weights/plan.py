"""The plan of a load: for each parameter, which tensors fill it and how, checked against the headers alone.

A plan that is ``ok`` can be executed without any further surprise of names, shapes or dtypes; ``core.inspect`` prints
the very plan that a load executes. Reads no weight byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint import TensorInfo
from core.errors import QuantizationError, WeightsError
from core.nn import CacheSpec, ExpertLinear
from core.weights.axes import rows_axis
from core.weights.dtypes import BYTES, FLOATS, PACKED
from core.weights.fit import Fitter, Parameter, Treatment, check_rows_cover
from core.weights.quantization import Quantization, QuantizationConfig
from core.weights.rules import Joined, Leaf, Node, Operation, Stacked, WeightMap, leaves, refuse_repeats
from core.weights.summary import summarise
from core.weights.tree import all_arrays


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter: what fills it and what it becomes.

    Attributes:
        parameter: path in the model.
        source: an operation on tensor names.
        shape: of the parameter.
        storage: dtype in the file, as safetensors spells it; of what the load computes, that in a file of MLX's format.
        dtype: dtype in memory.
        quantization: settings, for the tensors of a quantized matrix.
    """

    parameter: str
    source: Node
    shape: tuple[int, ...]
    storage: str
    dtype: mx.Dtype
    quantization: Quantization | None

    @property
    def tensors(self) -> list[str]:
        """Names of the checkpoint tensors that fill the parameter, in order."""
        return leaves(self.source)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * self.dtype.size


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor that is there but does not fit: expected and found are shapes or dtypes as text."""

    tensor: str
    shard: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.tensor} in {self.shard} (expected {self.expected}, found {self.found})"


@dataclass(frozen=True)
class Plan:
    """What a load would do. Made by ``core.plan``; executed by ``core.load``.

    Attributes:
        source, model_type, plugin, layout: what is loaded, by whom, from which arrangement of tensors.
        entries: every parameter that the checkpoint fills, in the model's order.
        missing: tensor → the parameter that needs it.
        unexpected: tensors that nothing claims.
        mismatched: tensors with a wrong shape or dtype.
        ignored: tensors left unread on purpose → why.
        cache_specs: what each block asks of its cache.
        compute_dtype: dtype of the activations.
        unread_keys: config keys that nobody read.
        notes: what else a user should know, one sentence each.
    """

    source: str
    model_type: str
    plugin: str
    layout: str
    entries: tuple[Entry, ...]
    missing: Mapping[str, str]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    ignored: Mapping[str, str]
    cache_specs: tuple[CacheSpec, ...]
    compute_dtype: mx.Dtype
    unread_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every parameter is filled, every tensor used, and all of them fit."""
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def bytes(self) -> int:
        """Bytes of the parameters in memory."""
        return sum(entry.nbytes for entry in self.entries)

    @property
    def parameters(self) -> int:
        """Number of weights, counting the elements of quantized matrices and not their scales."""
        total = 0
        for entry in self.entries:
            size = math.prod(entry.shape)
            if entry.quantization is None:
                total += size
            elif entry.storage == PACKED:
                total += size * 32 // entry.quantization.bits
        return total

    def kv_bytes(self, tokens: int, batch: int = 1) -> int:
        """Bytes of the caches of ``batch`` sequences of ``tokens`` tokens."""
        return batch * sum(spec.bytes_at(tokens, self.compute_dtype) for spec in self.cache_specs)

    def check(self) -> None:
        """Refuses a plan that is not ``ok``.

        Raises:
            WeightsError: one error that names the tensors concerned, grouped.
        """
        if self.ok:
            return
        problems = []
        if self.missing:
            problems.append(f"missing {summarise(self.missing)}")
        if self.mismatched:
            problems.append(f"does not fit: {_grouped(self.mismatched)}")
        if self.unexpected:
            problems.append(f"unexpected {summarise(self.unexpected)}")
        hint = (
            f"Config and weights may belong to different models. python -m core.inspect {self.source} --keys shows all."
        )
        if set(self.missing.values()) == {"lm_head.weight"} and len(problems) == 1:
            hint = 'If the head shares the embedding\'s matrix, config.json must say "tie_word_embeddings": true.'
        raise WeightsError("the tensors do not fit the config: " + "\n  ".join(problems), where=self.source, hint=hint)


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
    unread_keys: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    treatment: Treatment | None = None,
) -> Plan:
    """Fits a skeleton to a checkpoint and plans its load.

    Args:
        model: the skeleton; modules are quantized and fused projections split where the headers ask for it.
        dtype: compute dtype; None takes the checkpoint's, or float32 for quantized weights and experts on a CPU.
        where: how an error names a file of the checkpoint.
        treatment: what the load quantizes or dequantizes.

    Raises:
        QuantizationError: config and tensors disagree on quantization.
        PluginError: the plugin's map does not fit its own model.
    """
    rows = weight_map.expand()
    treatment = treatment or Treatment()
    _check_quantized(tensors, quantization, where("config.json"))
    _check_treatment(treatment, quantization, where("config.json"))
    fitter = Fitter(model, tensors, quantization, where, treatment)
    parameters = [parameter for row in rows for parameter in fitter.fit(row)]
    arrays = all_arrays(model)
    check_rows_cover(list(arrays), {parameter.path for parameter in parameters}, plugin)
    order = {path: place for place, path in enumerate(arrays)}
    parameters.sort(key=lambda parameter: order[parameter.path])
    compute = dtype or _compute_dtype(model, parameters, tensors)
    missing: dict[str, str] = {}
    mismatched: list[Mismatch] = []
    entries: list[Entry] = []
    for parameter in parameters:
        problems = _problems(parameter, tensors)
        absent = [name for name in leaves(parameter.source) if name not in tensors]
        missing.update(dict.fromkeys(absent, parameter.path))
        mismatched += problems
        if not problems and not absent:
            entries.append(_entry(parameter, tensors, compute))
    # The tensors of one computation are read once, and name each of its results.
    read = {_computation(parameter): parameter.source for parameter in parameters}
    sources = [name for source in read.values() for name in leaves(source)]
    # A module and its own weight may both be named in a map, and only here is that seen.
    refuse_repeats("parameter", [parameter.path for parameter in parameters])
    refuse_repeats("tensor", sources)
    claimed = set(sources)
    left_over = [name for name in tensors if name not in claimed]
    reasons = weight_map.expand_ignored()
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
        ignored={name: reasons[name] for name in left_over if name in reasons},
        cache_specs=cache_specs,
        compute_dtype=compute,
        unread_keys=unread_keys,
        notes=notes + _unused_overrides(quantization, used) + fitter.notes() + _imported(entries, quantization),
    )


def coverage(weight_map: WeightMap, tensors: Mapping[str, TensorInfo]) -> tuple[int, float]:
    """How a layout is recognised: the tensors that a map accounts for, then the share of its sources that are there.

    In this order, because a config with the wrong number of experts asks for many tensors that no layout has.
    """
    names = {leaf for row in weight_map.expand() for leaf in leaves(row.source)}
    claimed = [name for name in tensors if name in names or name.rpartition(".")[0] in names]
    found = {name if name in names else name.rpartition(".")[0] for name in claimed}
    return len(claimed), len(found) / max(1, len(names))


def _grouped(mismatched: tuple[Mismatch, ...], limit: int = 3) -> str:
    """Mismatches of one kind together, so that 32 layers with one fault read like one."""
    kinds: dict[tuple[str, str], list[Mismatch]] = {}
    for one in mismatched:
        kinds.setdefault((one.expected, one.found), []).append(one)
    shown = []
    for (expected, found), group in list(kinds.items())[:limit]:
        shards = sorted({one.shard for one in group})
        more = f" and {len(shards) - 1} more files" if len(shards) > 1 else ""
        names = summarise(one.tensor for one in group)
        shown.append(f"{names} in {shards[0]}{more} (expected {expected}, found {found})")
    if len(kinds) > limit:
        shown.append(f"and {len(kinds) - limit} more kinds")
    return "; ".join(shown)


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
            hint="dequantize=True besides (--dequantize) makes floats of them first; the first rounding remains.",
        )


def _imported(entries: list[Entry], quantization: QuantizationConfig | None) -> tuple[str, ...]:
    """What another tool's packing has become."""
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
    """Equal for the tensors of a module that one computation makes."""
    if outer_operation(parameter.source) is None:
        return parameter.path
    return parameter.path.rpartition(".")[0]


def outer_operation(node: Node) -> Operation | None:
    """The operation on the first of a node's parts, if there is one; all parts have the same."""
    while not isinstance(node, Operation):
        if isinstance(node, Leaf):
            return None
        node = node.parts[0]
    return node


def stored_dtype(node: Node, tensors: Mapping[str, TensorInfo]) -> str:
    """What a tensor is in a file of MLX's format: what it is in this one, but for what is computed."""
    if isinstance(node, Leaf):
        return tensors[node.name].dtype
    found = stored_dtype(node.parts[0], tensors)
    return node.storage(found) if isinstance(node, Operation) else found


def _compute_dtype(model: nn.Module, parameters: list[Parameter], tensors: Mapping[str, TensorInfo]) -> mx.Dtype:
    """The dtype of most elements; on a CPU, float32 for what MLX computes there slowly, or not at all, in half.

    Those are quantized products and experts.
    """
    if mx.default_device().type == mx.DeviceType.cpu and (
        any(parameter.settings for parameter in parameters)
        or any(isinstance(module, ExpertLinear) for module in model.modules())
    ):
        return mx.float32
    sizes: dict[str, int] = {}
    for parameter in parameters:
        for name in leaves(parameter.source):
            info = tensors.get(name)
            if info is not None and info.dtype in FLOATS:
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return FLOATS[max(sizes, key=lambda key: sizes[key])] if sizes else mx.float32


def _entry(parameter: Parameter, tensors: Mapping[str, TensorInfo], compute: mx.Dtype) -> Entry:
    storage = stored_dtype(parameter.source, tensors)
    dtype = compute if storage in FLOATS else (mx.uint32 if storage == PACKED else mx.uint8)
    operation = outer_operation(parameter.source)
    if operation is not None and operation.kept is not None and storage in FLOATS:
        dtype = operation.kept
    return Entry(parameter.path, parameter.source, tuple(parameter.array.shape), storage, dtype, parameter.settings)


def _problems(parameter: Parameter, tensors: Mapping[str, TensorInfo]) -> list[Mismatch]:
    whole = tuple(parameter.array.shape)
    expected = _expected(parameter.source, whole, _accepted_dtypes(parameter), parameter, tensors)
    found = []
    for name, (shape, accepted) in expected.items():
        info = tensors.get(name)
        if info is None:
            continue
        if info.dtype not in accepted:
            found.append(Mismatch(name, info.shard, " or ".join(accepted), info.dtype))
        elif shape is not None and info.shape != shape:
            found.append(Mismatch(name, info.shard, f"shape {list(shape)}", f"{list(info.shape)}"))
    return found


def _accepted_dtypes(parameter: Parameter) -> tuple[str, ...]:
    if parameter.settings is None or parameter.role not in ("weight", "scales", "biases"):
        return tuple(FLOATS)
    if parameter.role == "weight":
        return (PACKED,)
    return (BYTES,) if parameter.array.dtype == mx.uint8 else tuple(FLOATS)


_Expected = dict[str, tuple[tuple[int, ...] | None, tuple[str, ...]]]


def _expected(
    node: Node,
    shape: tuple[int, ...] | None,
    accepted: tuple[str, ...],
    parameter: Parameter,
    tensors: Mapping[str, TensorInfo],
) -> _Expected:
    """Shape (None: open) and dtypes that each tensor below ``node`` must have for the whole to be ``shape``."""
    if isinstance(node, Leaf):
        return {node.name: (shape, accepted)}
    if isinstance(node, Operation):
        needs = node.inputs(shape) if shape is not None else [(None, dtypes) for _, dtypes in node.inputs((1, 1))]
        parts = zip(node.parts, needs, strict=True)
        return {k: v for part, need in parts for k, v in _expected(part, *need, parameter, tensors).items()}
    shapes: list[tuple[int, ...] | None] = [None] * len(node.parts)
    if shape is not None and isinstance(node, Stacked) and shape[0] == len(node.parts):
        shapes = [shape[1:]] * len(node.parts)
    elif shape is not None and isinstance(node, Joined):
        axis = rows_axis(parameter.role, len(shape))
        for i, count in enumerate(parameter.rows or _rows_in_file(node, axis, shape[axis], tensors) or ()):
            sized = list(shape)
            sized[axis] = count
            shapes[i] = tuple(sized)
    return {
        name: found
        for part, one in zip(node.parts, shapes, strict=True)
        for name, found in _expected(part, one, accepted, parameter, tensors).items()
    }


def _rows_in_file(node: Joined, axis: int, total: int, tensors: Mapping[str, TensorInfo]) -> tuple[int, ...] | None:
    """The parts' own row counts, where the model does not know them and they add up."""
    counts = []
    for part in node.parts:
        info = tensors.get(leaves(part)[0])
        if info is None or len(info.shape) < -axis:
            return None
        counts.append(info.shape[axis])
    return tuple(counts) if sum(counts) == total else tuple([total // len(counts)] * len(counts))


def _unused_overrides(quantization: QuantizationConfig | None, used: set[str]) -> tuple[str, ...]:
    names = [] if quantization is None else [name for name in quantization.overrides if name not in used]
    if not names:
        return ()
    return (f"the config's quantization settings for {summarise(names)} name no layer of this checkpoint",)
