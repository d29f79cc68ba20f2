"""Fits the skeleton to the checkpoint: quantizes the modules whose tensors are quantized, and splits fused projections
whose parts differ.

Works on headers and an unevaluated model; reads no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint import TensorInfo
from core.errors import PluginError, QuantizationError, WeightsError
from core.nn import FusedLinear
from core.weights.quantization import Quantization, QuantizationConfig
from core.weights.rules import (
    Leaf,
    Node,
    Row,
    is_fused,
    iter_leaves,
    joined_parts,
    leaves,
    select,
    tensor_name,
    with_suffix,
)
from core.weights.tree import find, own_arrays, replace


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter and where its data comes from.

    Attributes:
        path: in the model.
        source: an operation on whole tensor names.
        array: the unevaluated parameter, for its shape.
        rows: output rows of each part of the source's concatenation; None where it has none, or they are unknown.
        settings: how the matrix is quantized; None for a full-precision one.
        role: the tensor's part in its module (``weight``, ``scales``, …).
    """

    path: str
    source: Node
    array: mx.array
    rows: tuple[int, ...] | None
    settings: Quantization | None
    role: str


@dataclass(frozen=True, slots=True)
class _Kind:
    """What must agree for parts to share a matrix."""

    settings: Quantization | None
    dtypes: tuple[str | None, ...]


class Fitter:
    """Turns the rows of an expanded map into parameters, changing the skeleton where the checkpoint asks for it.

    Args:
        model: the skeleton, built with unquantized and fully fused modules.
        tensors: headers.
        quantization: the config's block, or None.
        where: how an error names a shard.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, TensorInfo],
        quantization: QuantizationConfig | None,
        where: Callable[[str], str] = str,
    ) -> None:
        self._model = model
        self._tensors = tensors
        self._quantization = quantization
        self._where = where

    def fit(self, row: Row) -> list[Parameter]:
        """The parameters that one row fills.

        Raises:
            PluginError: the row's target is not in the model.
            QuantizationError: tensors and config contradict each other, or parts that must agree do not.
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
        return self._fit_module(row.target, row.source, None)

    def _fit_fused(self, row: Row, target: FusedLinear) -> list[Parameter]:
        names = list(target.parts)
        if is_fused(row.source):  # the plan checks its rows
            return self._fit_module(f"{row.target}.linears.0", row.source, None)
        if joined_parts(row.source) != len(names):
            raise PluginError(
                f"the weight map fills {row.target!r}, a fused projection, with another number of parts",
                expected=f"Concat of {len(names)} parts ({', '.join(names)})",
                found=joined_parts(row.source) or "no Concat",
            )
        groups: dict[_Kind, list[int]] = {}
        for index, name in enumerate(names):
            kind = self._kind(f"{row.target}.{name}", select(row.source, (index,)))
            groups.setdefault(kind, []).append(index)
        if len(groups) > 1:
            target.regroup([[names[i] for i in group] for group in groups.values()])
        parameters = []
        for number, group in enumerate(groups.values()):
            rows = tuple(target.parts[names[i]] for i in group) if len(group) > 1 else None
            source = select(row.source, tuple(group))
            parameters += self._fit_module(f"{row.target}.linears.{number}", source, rows)
        return parameters

    def _fit_module(self, path: str, source: Node, rows: tuple[int, ...] | None) -> list[Parameter]:
        settings = self._kind(path, source).settings
        if settings is not None:
            self._quantize(path, settings, leaves(source)[0])
        module = find(self._model, path)
        return [
            Parameter(f"{path}.{role}", with_suffix(source, role), array, rows, settings, role)
            for role, array in own_arrays(module).items()
        ]

    def _kind(self, path: str, source: Node) -> _Kind:
        """The kind that all leaves of ``source`` share; the plan reports those whose tensors are absent."""
        kinds: dict[_Kind, str] = {}
        for leaf in iter_leaves(source):
            if tensor_name(leaf, "weight") in self._tensors:
                kinds.setdefault(self._leaf_kind(leaf), tensor_name(leaf, "weight"))
        if len(kinds) > 1:
            (one, first), (other, second) = list(kinds.items())[:2]
            raise QuantizationError(
                f"tensors that share the matrix {path!r} differ in quantization or dtype",
                where=self._where(self._tensors[second].shard),
                expected=f"{first.removesuffix('.weight')}: {_describe(one)}",
                found=f"{second.removesuffix('.weight')}: {_describe(other)}",
                hint="Experts of one layer must be stored alike.",
            )
        return next(iter(kinds), _Kind(None, ()))

    def _leaf_kind(self, leaf: Leaf) -> _Kind:
        name = leaf.name
        if leaf.whole:  # without suffixes there is no place for scales
            return _Kind(None, (self._tensors[name].dtype, None, None))
        dtypes = tuple(
            info.dtype if (info := self._tensors.get(f"{name}.{role}")) else None
            for role in ("weight", "scales", "biases")
        )
        quantized = f"{name}.scales" in self._tensors
        config = self._quantization
        if quantized and config is None:
            raise QuantizationError(
                f"tensor '{name}.scales' says that the weights are quantized, but the config has no quantization block",
                where=self._where(self._tensors[f"{name}.scales"].shard),
                expected='"quantization": {"bits": …, "group_size": …} in config.json',
                hint="Copy the block from the config this checkpoint was published with.",
            )
        if config is None:
            return _Kind(None, dtypes)
        settings = config.of(name)
        if quantized and settings is None:
            raise QuantizationError(
                f"the config turns quantization off for {name!r}, but its tensors are quantized",
                where=self._where(self._tensors[f"{name}.scales"].shard),
            )
        if not quantized and config.overrides.get(name) is not None:
            raise QuantizationError(
                f"the config says that {name!r} is quantized ({settings}), but '{name}.scales' is not there",
                where=self._where(self._tensors[f"{name}.weight"].shard),
            )
        return _Kind(settings if quantized else None, dtypes)

    def _quantize(self, path: str, settings: Quantization, name: str) -> None:
        module = find(self._model, path)
        if not hasattr(module, "to_quantized"):
            raise QuantizationError(
                f"tensor '{name}.scales' is quantized, but its module {path!r} ({type(module).__name__}) cannot be",
                where=self._where(self._tensors[f"{name}.scales"].shard),
            )
        try:
            quantized = module.to_quantized(settings.group_size, settings.bits, mode=settings.mode)
        except ValueError as error:
            raise QuantizationError(
                f"{path!r} cannot be quantized as the config says ({settings})",
                where=self._where(self._tensors[f"{name}.scales"].shard),
                found=f"shape {tuple(module.weight.shape)}",
                hint=str(error).split("\n")[0],
            ) from None
        replace(self._model, path, quantized)


def _describe(kind: _Kind) -> str:
    return f"{kind.settings or 'not quantized'}, {kind.dtypes[0]}"


def check_rows_cover(model_paths: list[str], filled: set[str], plugin: str) -> None:
    """Refuses a map that leaves parameters of the model without a rule.

    Raises:
        WeightsError: naming them and the plugin.
    """
    from core.weights.summary import summarise

    forgotten = [path for path in model_paths if path not in filled]
    if forgotten:
        raise WeightsError(
            f"the weight map of plugin {plugin!r} has no rule for {summarise(forgotten)}",
            hint="Every parameter of the model needs a source; this is a fault of the plugin.",
        )
