"""Fits the skeleton to the checkpoint: quantizes the modules whose tensors are quantized, or are to be, and splits
fused projections whose parts differ.

Works on headers and an unevaluated model; reads no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import mlx.core as mx
import mlx.nn as nn

from core.checkpoint import TensorInfo
from core.errors import PluginError, QuantizationError, WeightsError
from core.nn import FusedLinear, QuantizedExpertLinear, WideQuantizedLinear
from core.weights.dtypes import FLOATS
from core.weights.imported import Imported
from core.weights.operations import Dequantized, quantized
from core.weights.quantization import Quantization, QuantizationConfig, roles
from core.weights.recipes import Recipe
from core.weights.rules import Leaf, Node, Row, each_leaf, joined_parts, leaves, select, with_suffix
from core.weights.summary import summarise
from core.weights.tree import find, own_arrays
from core.weights.tree import replace as put


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


@dataclass(frozen=True)
class Treatment:
    """What a load does to the quantization that it finds.

    Attributes:
        recipe: quantize by it; None keeps what the file has.
        dequantize: make floats of what is quantized, before any recipe.
        approximate: keep another tool's scales, and the biases made of them, in float16 even where that rounds.
        allowed: path and module → whether the architecture lets it be quantized.
    """

    recipe: Recipe | None = None
    dequantize: bool = False
    approximate: bool = False
    allowed: Callable[[str, nn.Module], bool] = lambda _, module: hasattr(module, "to_quantized")


@dataclass(frozen=True, slots=True)
class _Kind:
    """What must agree for parts to share a matrix; ``made`` where the load quantizes it."""

    settings: Quantization | None
    dtypes: tuple[str | None, ...]
    made: bool = False


_ABSENT = _Kind(None, ())


class Fitter:
    """Turns the rows of an expanded map into parameters, changing the skeleton where the checkpoint asks for it.

    Args:
        model: the skeleton, built with unquantized and fully fused modules.
        tensors: headers.
        quantization: the config's block, or None.
        where: how an error names a shard.
        treatment: what is to be quantized or dequantized.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, TensorInfo],
        quantization: QuantizationConfig | None,
        where: Callable[[str], str] = str,
        treatment: Treatment | None = None,
    ) -> None:
        self._treatment = treatment or Treatment()
        self._undivided: dict[str, list[str]] = {}
        self._asked: set[str] = set()
        self._chosen: set[str] = set()
        self._model = model
        self._tensors = tensors
        self._quantization = quantization
        self._packing = None if quantization is None else quantization.packing
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
        kind = self._kind(row.target, row.source, target) or _ABSENT
        return self._fit_module(row.target, row.source, None, kind)

    def notes(self) -> tuple[str, ...]:
        """What became of the caller's wish to quantize, one sentence each."""
        found = [
            f"stays in full precision, because {why}: {summarise(names)}" for why, names in self._undivided.items()
        ]
        recipe = self._treatment.recipe
        if recipe is not None and not self._chosen:
            found.append("no matrix is quantized: quantize= leaves every one out")
        found += [
            f"the pattern {pattern!r} of quantize= matches no matrix that can be quantized"
            for pattern in (recipe.patterns if recipe is not None else ())
            if not any(fnmatchcase(name, pattern) for name in self._asked)
        ]
        if self._treatment.dequantize and self._quantization is None:
            found.append("nothing to dequantize: the weights are in full precision")
        return tuple(found)

    def _fit_fused(self, row: Row, target: FusedLinear) -> list[Parameter]:
        names = list(target.parts)
        if joined_parts(row.source) != len(names):
            raise PluginError(
                f"the weight map fills {row.target!r}, a fused projection, with another number of parts",
                expected=f"Concat of {len(names)} parts ({', '.join(names)})",
                found=joined_parts(row.source) or "no Concat",
            )
        whole = target.linears[0]
        kinds = [self._kind(f"{row.target}.{name}", select(row.source, (i,)), whole) for i, name in enumerate(names)]
        # A part that is missing altogether goes with the others, so that the plan names it where it belongs.
        usual = next(filter(None, kinds), _ABSENT)
        groups: dict[_Kind, list[int]] = {}
        for index, kind in enumerate(kinds):
            groups.setdefault(kind or usual, []).append(index)
        if len(groups) > 1:
            target.regroup([[names[i] for i in group] for group in groups.values()])
        parameters = []
        for number, (kind, group) in enumerate(groups.items()):
            rows = tuple(target.parts[names[i]] for i in group) if len(group) > 1 else None
            source = select(row.source, tuple(group))
            parameters += self._fit_module(f"{row.target}.linears.{number}", source, rows, kind)
        return parameters

    def _fit_module(self, path: str, source: Node, rows: tuple[int, ...] | None, kind: _Kind) -> list[Parameter]:
        if kind.settings is not None:
            self._quantize(path, kind.settings, leaves(source)[0])
        module = find(self._model, path)
        return [
            Parameter(f"{path}.{role}", self._source(source, role, kind), array, rows, kind.settings, role)
            for role, array in own_arrays(module).items()
        ]

    def _source(self, source: Node, role: str, kind: _Kind) -> Node:
        """Where one tensor of a module comes from."""
        if kind.made and kind.settings is not None and role in ("weight", "scales", "biases"):
            return quantized(each_leaf(source, self._floats), kind.settings, role)
        if kind.settings is None and role == "weight":
            return each_leaf(source, self._floats)
        settings = kind.settings
        if settings is not None and self._packing is not None and role in ("weight", "scales", "biases"):
            return each_leaf(source, lambda leaf: self._stored(leaf.name, settings, role))
        return with_suffix(source, role)

    def _floats(self, leaf: Leaf) -> Node:
        """One matrix in full precision."""
        settings = None if self._quantization is None else self._quantization.of(leaf.name)
        scales = self._tensors.get(f"{leaf.name}.scales")
        if settings is None or scales is None:
            return Leaf(f"{leaf.name}.weight")
        sources = tuple(self._stored(leaf.name, settings, role) for role in roles(settings))
        return Dequantized(sources, settings, _float_dtype(scales.dtype))

    def _stored(self, name: str, settings: Quantization, role: str) -> Node:
        """One tensor of a matrix that the file has quantized."""
        if self._packing is None:
            return Leaf(f"{name}.{role}")
        ordered = f"{name}.g_idx" in self._tensors
        return Imported(name, settings, self._packing, ordered, self._treatment.approximate, role)

    def _kind(self, path: str, source: Node, module: nn.Module) -> _Kind | None:
        """The kind that all leaves of ``source`` share, as far as they are there; None where none is."""
        kinds: dict[_Kind, str] = {}
        allowed: bool | None = None
        for name in leaves(source):
            if not self._has_matrix(name):
                continue
            found = self._leaf_kind(name)
            if found.settings is None and self._treatment.recipe is not None:
                if allowed is None:
                    allowed = self._allowed(path, module)
                settings = self._chosen_settings(name, path, module) if allowed else None
                found = found if settings is None else replace(found, settings=settings, made=True)
            kinds.setdefault(found, name)
        if len(kinds) > 1:
            (one, first), (other, second) = list(kinds.items())[:2]
            raise QuantizationError(
                f"tensors that share the matrix {path!r} differ in quantization or dtype",
                where=self._where(self._tensors[self._matrix(second)].shard),
                expected=f"{first}: {_describe(one)}",
                found=f"{second}: {_describe(other)}",
                hint="Experts of one layer must be stored alike.",
            )
        return next(iter(kinds), None)

    def _matrix(self, name: str) -> str:
        """The tensor that holds a module's matrix."""
        return f"{name}.weight" if self._packing is None or f"{name}.weight" in self._tensors else f"{name}.qweight"

    def _has_matrix(self, name: str) -> bool:
        return self._matrix(name) in self._tensors

    def _leaf_kind(self, name: str) -> _Kind:
        dtypes = tuple(
            info.dtype if (info := self._tensors.get(f"{name}.{role}")) else None
            for role in (self._matrix(name).rpartition(".")[2], "scales", "biases")
        )
        quantized = f"{name}.scales" in self._tensors
        if f"{name}.global_scale" in self._tensors:
            raise QuantizationError(
                f"tensor '{name}.global_scale' scales the whole matrix, which is not supported",
                where=self._where(self._tensors[f"{name}.global_scale"].shard),
                hint="MLX's product with quantized weights takes no such scale; convert the model without it.",
            )
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
        if quantized and self._treatment.dequantize:
            # Matrices that were quantized differently share one again, if their floats are of one type.
            return _Kind(None, (_float_dtype(dtypes[1]), None, None))
        return _Kind(settings if quantized else None, dtypes)

    def _wider(self, module: nn.Module, path: str) -> nn.Module:
        """A quantized module for scales of another float type than the activations."""
        if isinstance(module, QuantizedExpertLinear):
            return module
        if isinstance(module, nn.QuantizedLinear):
            return WideQuantizedLinear.of(module)
        raise QuantizationError(
            f"{path!r} ({type(module).__name__}) is quantized by another tool, which is supported for projections only",
            hint="dequantize=True (--dequantize) makes floats of all quantized weights.",
        )

    def _allowed(self, path: str, module: nn.Module) -> bool:
        """Whether the architecture and the caller let a module be quantized."""
        recipe = self._treatment.recipe
        assert recipe is not None
        tied = "lm_head" not in self._model  # the embedding's matrix is the head's, too
        if isinstance(module, nn.Embedding) and not (recipe.quantize_embeddings and (recipe.quantize_head or not tied)):
            return False
        if path == "lm_head" and not recipe.quantize_head:
            return False
        return hasattr(module, "to_quantized") and self._treatment.allowed(path, module)

    def _chosen_settings(self, name: str, path: str, module: nn.Module) -> Quantization | None:
        """What the recipe says of one matrix; None, noted, where its groups do not fit."""
        recipe = self._treatment.recipe
        assert recipe is not None
        self._asked.add(name)
        settings = recipe.choose(name, path, len(getattr(self._model, "layers", ())))
        columns = module.weight.shape[-1]
        if settings is not None and columns % settings.group_size:
            why = f"groups of {settings.group_size} do not divide {columns} input features"
            self._undivided.setdefault(why, []).append(name)
            return None
        if settings is not None:
            self._chosen.add(name)
        return settings

    def _quantize(self, path: str, settings: Quantization, name: str) -> None:
        module = find(self._model, path)
        if not hasattr(module, "to_quantized"):
            raise QuantizationError(
                f"tensor '{name}.scales' is quantized, but its module {path!r} ({type(module).__name__}) cannot be",
                where=self._where(self._tensors[f"{name}.scales"].shard),
            )
        try:
            swapped = module.to_quantized(settings.group_size, settings.bits, mode=settings.mode)
            if self._packing is not None and not self._treatment.dequantize:
                swapped = self._wider(swapped, path)
        except ValueError as error:
            raise QuantizationError(
                f"{path!r} cannot be quantized as the config says ({settings})",
                where=self._where(self._tensors[f"{name}.scales"].shard),
                found=f"shape {tuple(module.weight.shape)}",
                hint=str(error).split("\n")[0],
            ) from None
        put(self._model, path, swapped)


def _float_dtype(scales: str | None) -> str:
    """The dtype of a dequantized matrix: that of its scales; MLX makes bfloat16 of those that are bytes."""
    return scales if scales in FLOATS else "BF16"


def _describe(kind: _Kind) -> str:
    return f"{kind.settings or 'not quantized'}, {kind.dtypes[0]}"


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
