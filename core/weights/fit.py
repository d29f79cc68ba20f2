"""Fits the skeleton to the checkpoint: quantizes modules, and splits fused projections whose parts are stored
differently.

A module is quantized if its tensors are, or if the caller asks for it. Only headers and an unevaluated model are used;
no weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint import TensorInfo
from core.errors import PluginError, QuantizationError, WeightsError, first_line
from core.nn import FusedLinear, QuantizedExpertLinear, QuantizedLinear
from core.weights.nodes import Leaf, Node, Row, each_leaf, is_fused, iter_leaves, joined_parts, select, with_suffix
from core.weights.operations import quantized
from core.weights.quantization import Quantization, QuantizationConfig
from core.weights.stored import Kind, Stored
from core.weights.summary import summarise
from core.weights.treatment import Chooser, Treatment
from core.weights.tree import find, own_arrays
from core.weights.tree import replace as put

_MATRIX = ("weight", "scales", "biases")
_ABSENT = Kind(None, ())


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter and where its data comes from.

    Attributes:
        path: in the model.
        source: an operation on whole tensor names.
        array: the unevaluated parameter, for its shape.
        rows: output rows of each part of the source's concatenation; None if there is none, or they are unknown.
        settings: how the matrix is quantized; None for a full-precision one.
        role: the tensor's part in its module (``weight``, ``scales``, …).
    """

    path: str
    source: Node
    array: mx.array
    rows: tuple[int, ...] | None
    settings: Quantization | None
    role: str


class Fitter:
    """Turns the rows of an expanded map into parameters, and changes the skeleton where needed.

    Args:
        model: the skeleton, built with unquantized and fully fused modules.
        tensors: headers.
        quantization: the config's block, or None.
        where: how an error names a shard.
        treatment: which matrices to quantize or dequantize.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, TensorInfo],
        quantization: QuantizationConfig | None,
        where: Callable[[str], str] = str,
        treatment: Treatment | None = None,
    ) -> None:
        self._model = model
        self._treatment = treatment or Treatment()
        self._chooser = Chooser(self._treatment, model)
        self._quantized = quantization is not None
        self._stored = Stored(tensors, quantization, where, self._treatment.approximate)

    def fit(self, row: Row) -> list[Parameter]:
        """The parameters that one row fills.

        Raises:
            PluginError: the row's target is not in the model.
            QuantizationError: tensors and config contradict each other, or parts of one matrix are stored differently.
        """
        target = find(self._model, row.target)
        if isinstance(target, mx.array):
            return [Parameter(row.target, row.source, target, None, None, "weight")]
        if not isinstance(target, nn.Module):
            raise PluginError(
                f"the weight map's target {row.target!r} is neither a module nor a parameter of the model",
                hint="Targets are paths in the tree that build_model and build_block make.",
            )
        if isinstance(target, FusedLinear):
            return self._fit_fused(row, target)
        kind = self._kind(row.target, row.source, target) or _ABSENT
        return self._fit_module(row.target, row.source, None, kind)

    def notes(self) -> tuple[str, ...]:
        """How the caller's request to quantize or dequantize was carried out, one sentence each."""
        found = self._chooser.notes()
        if self._treatment.dequantize and not self._quantized:
            found += ("nothing to dequantize: the weights are in full precision",)
        return found

    def _fit_fused(self, row: Row, target: FusedLinear) -> list[Parameter]:
        names = list(target.parts)
        whole = target.linears[0]
        if is_fused(row.source):  # the plan checks its number of rows
            kind = self._kind(row.target, row.source, whole) or _ABSENT
            return self._fit_module(f"{row.target}.linears.0", row.source, None, kind)
        if joined_parts(row.source) != len(names):
            raise PluginError(
                f"the weight map fills {row.target!r}, a fused projection, with another number of parts",
                expected=f"Concat of {len(names)} parts ({', '.join(names)}), or Fused",
                found=joined_parts(row.source) or "no Concat",
            )
        kinds = [self._kind(f"{row.target}.{name}", select(row.source, (i,)), whole) for i, name in enumerate(names)]
        # A part that is missing entirely stays with the others, so that the plan reports it under its parameter.
        usual = next(filter(None, kinds), _ABSENT)
        groups: dict[Kind, list[int]] = {}
        for index, found in enumerate(kinds):
            groups.setdefault(found or usual, []).append(index)
        if len(groups) > 1:
            target.regroup([[names[i] for i in group] for group in groups.values()])
        parameters = []
        for number, (kind, group) in enumerate(groups.items()):
            rows = tuple(target.parts[names[i]] for i in group) if len(group) > 1 else None
            source = select(row.source, tuple(group))
            parameters += self._fit_module(f"{row.target}.linears.{number}", source, rows, kind)
        return parameters

    def _fit_module(self, path: str, source: Node, rows: tuple[int, ...] | None, kind: Kind) -> list[Parameter]:
        if kind.settings is not None:
            self._quantize(path, kind.settings, next(iter_leaves(source)))
        module = find(self._model, path)
        return [
            Parameter(f"{path}.{role}", self._source(source, role, kind), array, rows, kind.settings, role)
            for role, array in own_arrays(module).items()
        ]

    def _source(self, source: Node, role: str, kind: Kind) -> Node:
        """The source of one tensor of a module."""
        settings = kind.settings
        if settings is None and role == "weight":
            return each_leaf(source, self._stored.floats)
        if settings is None or role not in _MATRIX:
            return with_suffix(source, role)
        if kind.made:
            return quantized(each_leaf(source, self._stored.floats), settings, role)
        return each_leaf(source, lambda leaf: self._stored.quantized(leaf, settings, role))

    def _kind(self, path: str, source: Node, module: nn.Module) -> Kind | None:
        """The kind that all present leaves of ``source`` share; None if none is present."""
        found = {
            leaf: self._stored.kind(leaf, dequantized=self._treatment.dequantize)
            for leaf in iter_leaves(source)
            if self._stored.has(leaf)
        }
        floats = [leaf.name for leaf, kind in found.items() if kind.settings is None]
        chosen = self._chooser.choose(floats, path, module)
        kinds: dict[Kind, Leaf] = {}
        for leaf, kind in found.items():
            settings = chosen.get(leaf.name)
            kinds.setdefault(kind if settings is None else replace(kind, settings=settings, made=True), leaf)
        if len(kinds) > 1:
            (one, first), (other, second) = list(kinds.items())[:2]
            raise QuantizationError(
                f"tensors that share the matrix {path!r} differ in quantization or dtype",
                where=self._stored.where(second),
                expected=f"{first.name}: {one}",
                found=f"{second.name}: {other}",
                hint="Experts of one layer must be stored alike.",
            )
        return next(iter(kinds), None)

    def _quantize(self, path: str, settings: Quantization, leaf: Leaf) -> None:
        module = find(self._model, path)
        if not hasattr(module, "to_quantized"):
            raise QuantizationError(
                f"tensor '{leaf.name}.scales' is quantized, but its module {path!r} ({type(module).__name__}) "
                "cannot be",
                where=self._stored.where(leaf),
            )
        try:
            swapped = module.to_quantized(settings.group_size, settings.bits, mode=settings.mode)
            if type(swapped) is nn.QuantizedLinear:
                swapped = QuantizedLinear.of(swapped)
            if self._stored.packing is not None and not self._treatment.dequantize:
                _check_wide_scales(swapped, path)
        except ValueError as error:
            raise QuantizationError(
                f"{path!r} cannot be quantized as the config says ({settings})",
                where=self._stored.where(leaf),
                found=f"shape {tuple(module.weight.shape)}",
                hint=first_line(error),
            ) from None
        put(self._model, path, swapped)


def _check_wide_scales(module: nn.Module, path: str) -> None:
    """Refuses scales of another float dtype than the activations, unless the layer is one of ``core.nn``'s."""
    if not isinstance(module, QuantizedLinear | QuantizedExpertLinear):
        raise QuantizationError(
            f"{path!r} ({type(module).__name__}) is quantized by another tool, which is supported for projections only",
            hint="dequantize=True (--dequantize) turns all quantized weights into floats.",
        )


def check_rows_cover(model_paths: list[str], filled: set[str], plugin: str) -> None:
    """Refuses a map that leaves parameters of the model without a rule.

    Raises:
        WeightsError: naming them and the plugin.
    """
    forgotten = [path for path in model_paths if path not in filled]
    if forgotten:
        raise WeightsError(
            f"the weight map of plugin {plugin!r} has no rule for {summarise(forgotten)}",
            hint="Every parameter of the model needs a source; this is a fault of the plugin.",
        )
