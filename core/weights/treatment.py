"""Decides which matrices a load quantizes or dequantizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import mlx.nn as nn

from core.weights.quantization import Quantization
from core.weights.recipes import Recipe
from core.weights.summary import summarise


@dataclass(frozen=True)
class Treatment:
    """What a load changes about quantization.

    Attributes:
        recipe: quantize by it; None keeps the file's quantization.
        dequantize: turn quantized matrices into floats, before any recipe.
        approximate: keep another tool's scales, and the biases computed from them, in float16 even where that rounds.
        allowed: path and module → whether the architecture allows it to be quantized.
    """

    recipe: Recipe | None = None
    dequantize: bool = False
    approximate: bool = False
    allowed: Callable[[str, nn.Module], bool] = lambda _, module: hasattr(module, "to_quantized")


class Chooser:
    """Chooses how the load quantizes each matrix, and records how the caller's request was carried out."""

    def __init__(self, treatment: Treatment, model: nn.Module) -> None:
        self._treatment = treatment
        self._model = model
        self._undivided: dict[str, list[str]] = {}
        self._asked: set[str] = set()
        self._chosen = False

    def choose(self, names: list[str], path: str, module: nn.Module) -> dict[str, Quantization | None]:
        """Settings for the matrices of one module; None keeps full precision.

        Args:
            names: of the matrices in the checkpoint.
            path: in the model, of the module or of the part of a fused one.
        """
        recipe = self._treatment.recipe
        if recipe is None or not self._allowed(path, module, recipe):
            return dict.fromkeys(names)
        return {name: self._settings(name, path, module, recipe) for name in names}

    def notes(self) -> tuple[str, ...]:
        """How the caller's request was carried out, one sentence each."""
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
        return tuple(found)

    def _allowed(self, path: str, module: nn.Module, recipe: Recipe) -> bool:
        """Whether the architecture and the caller allow a module to be quantized."""
        tied = "lm_head" not in self._model  # the head uses the embedding's matrix
        if isinstance(module, nn.Embedding) and not (recipe.quantize_embeddings and (recipe.quantize_head or not tied)):
            return False
        if path == "lm_head" and not recipe.quantize_head:
            return False
        return hasattr(module, "to_quantized") and self._treatment.allowed(path, module)

    def _settings(self, name: str, path: str, module: nn.Module, recipe: Recipe) -> Quantization | None:
        """The recipe's settings for one matrix; None, with a note, if its groups do not fit."""
        self._asked.add(name)
        settings = recipe.choose(name, path, len(getattr(self._model, "layers", ())))
        columns = module.weight.shape[-1]
        if settings is not None and columns % settings.group_size:
            why = f"groups of {settings.group_size} do not divide {columns} input features"
            self._undivided.setdefault(why, []).append(name)
            return None
        self._chosen = self._chosen or settings is not None
        return settings
