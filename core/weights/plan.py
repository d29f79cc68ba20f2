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
from core.errors import PluginError, QuantizationError, WeightsError
from core.nn import CacheSpec, ExpertLinear
from core.weights.axes import rows_axis
from core.weights.dtypes import BYTES, FLOATS, PACKED
from core.weights.fit import Fitter, Parameter, check_rows_cover
from core.weights.quantization import Quantization, QuantizationConfig
from core.weights.rules import Joined, Leaf, Node, Permuted, Stacked, WeightMap, leaves, reason_for, refuse_repeats
from core.weights.summary import summarise
from core.weights.tree import all_arrays


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter: what fills it and what it becomes.

    Attributes:
        parameter: path in the model.
        source: an operation on tensor names.
        shape: of the parameter.
        storage: dtype in the file, as safetensors spells it.
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
        if len(problems) == 1 and self.unexpected and all("lm_head" in name.split(".") for name in self.unexpected):
            hint = 'If the head has a matrix of its own, config.json must say "tie_word_embeddings": false.'
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
    config_name: str = "config.json",
    unread_keys: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Plan:
    """Fits a skeleton to a checkpoint and plans its load.

    Args:
        model: the skeleton; modules are quantized and fused projections split where the headers ask for it.
        dtype: compute dtype; None takes the checkpoint's, or float32 for quantized weights and experts on a CPU.
        where: how an error names a file of the checkpoint; config_name: the one that the config came from.

    Raises:
        QuantizationError: config and tensors disagree on quantization.
        PluginError: the plugin's map does not fit its own model.
    """
    rows = weight_map.expand()
    _check_quantized(tensors, quantization, where(config_name))
    fitter = Fitter(model, tensors, quantization, where)
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
    sources = [name for parameter in parameters for name in leaves(parameter.source)]
    # A module and its own weight may both be named in a map, and only here is that seen.
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
        notes=notes + _unused_overrides(quantization, used),
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
    if quantization is not None and not any(name.endswith(".scales") for name in tensors):
        raise QuantizationError(
            f"the config says that the weights are quantized ({quantization.default}), but no tensor has scales",
            where=where,
            hint="Take the quantization block out of the file if the weights are in full precision.",
        )


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
    storage = tensors[leaves(parameter.source)[0]].dtype
    dtype = compute if storage in FLOATS else (mx.uint32 if storage == PACKED else mx.uint8)
    return Entry(parameter.path, parameter.source, tuple(parameter.array.shape), storage, dtype, parameter.settings)


def _problems(parameter: Parameter, tensors: Mapping[str, TensorInfo]) -> list[Mismatch]:
    expected = _leaf_shapes(parameter.source, tuple(parameter.array.shape), parameter, tensors)
    accepted = _accepted_dtypes(parameter)
    found = []
    for name, shape in expected.items():
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


def _leaf_shapes(
    node: Node, shape: tuple[int, ...], parameter: Parameter, tensors: Mapping[str, TensorInfo]
) -> dict[str, tuple[int, ...] | None]:
    """The shape that each tensor below ``node`` must have for the whole to be ``shape``; None where it is open."""
    if isinstance(node, Leaf):
        return {node.name: shape}
    if isinstance(node, Stacked):
        if shape[0] != len(node.parts):
            return dict.fromkeys(leaves(node))
        return {k: v for part in node.parts for k, v in _leaf_shapes(part, shape[1:], parameter, tensors).items()}
    axis = rows_axis(parameter.role, len(shape))
    if isinstance(node, Permuted):
        if shape[axis] % (2 * node.heads):
            raise PluginError(
                f"the weight map permutes {shape[axis]} rows of {parameter.path!r} as {node.heads} heads",
                expected="rows that make an even number for each head",
            )
        return _leaf_shapes(node.part, shape, parameter, tensors)
    rows = parameter.rows or _rows_in_file(node, axis, shape[axis], tensors)
    if rows is None:
        return dict.fromkeys(leaves(node))
    shapes: dict[str, tuple[int, ...] | None] = {}
    for part, count in zip(node.parts, rows, strict=True):
        sized = list(shape)
        sized[axis] = count
        shapes |= _leaf_shapes(part, tuple(sized), parameter, tensors)
    return shapes


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
