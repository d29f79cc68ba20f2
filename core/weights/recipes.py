"""Reads ``quantize=`` of ``core.load``: one setting, a named recipe, or patterns of names.

Whether a module can be quantized, and whether the plugin allows it, is decided by the plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Literal

import mlx.core as mx

from core.errors import UsageError, first_line
from core.weights.quantization import Quantization, refusal

Setting = int | str | Quantization
"""Bits in MLX's affine mode; the name of an MLX mode (``"mxfp4"``) with its defaults; or a full ``Quantization``."""
Quantize = Setting | Mapping[str, Setting | Literal[False]]
"""A setting for all, a mixed recipe's name, or patterns of original names → setting or False: the first match
counts."""

_MIXED = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}
_VALUES = ("v_proj", "v_a_proj", "v_b_proj")
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Recipe:
    """Settings for each matrix, and which kinds of modules are left out.

    Attributes:
        choose: original name, path in the model and number of blocks → settings; None keeps full precision.
        patterns: the caller's, to report those that match nothing.
        quantize_embeddings, quantize_head: whether those are quantized; where they share a matrix, both must be True.
    """

    choose: Callable[[str, str, int], Quantization | None]
    patterns: tuple[str, ...] = ()
    quantize_embeddings: bool = True
    quantize_head: bool = True


def recipe(asked: Quantize, *, quantize_embeddings: bool = True, quantize_head: bool = True) -> Recipe:
    """Reads ``quantize=`` of ``core.load``.

    Raises:
        UsageError: an unknown name, or settings that the installed MLX does not have.
    """
    choose, patterns = _choice(asked)
    return Recipe(choose, patterns, quantize_embeddings, quantize_head)


def _choice(asked: Quantize) -> tuple[Callable[[str, str, int], Quantization | None], tuple[str, ...]]:
    if isinstance(asked, str) and asked in _MIXED:
        few, many = (_settings(bits) for bits in _MIXED[asked])
        return (lambda _, path, blocks: many if _needs_more(path, blocks) else few), ()
    if not isinstance(asked, Mapping):
        settings = _settings(asked)
        return (lambda *_: settings), ()
    rules = [(pattern, None if value is False else _settings(value)) for pattern, value in asked.items()]

    def first(name: str, _path: str, _blocks: int) -> Quantization | None:
        return next((found for pattern, found in rules if fnmatchcase(name, pattern)), None)

    return first, tuple(asked)


def _needs_more(path: str, blocks: int) -> bool:
    """Whether mlx-lm's mixed recipes give a matrix the larger number of bits.

    They do so for the head, and for the value and down projections of the first eighth and the last eighth of the
    blocks and of every third block between. This is the rule of llama.cpp's ``Q4_K_M``. Experts' projections are
    recognised by their names in the model.
    """
    part = path.rpartition(".")[2]
    if part == "lm_head":
        return True
    layer = _LAYER.search(f".{path}.")
    if layer is None or part not in (*_VALUES, "down_proj"):
        return False
    index, eighth = int(layer[1]), blocks // 8
    return index < eighth or index >= 7 * blocks // 8 or (index - eighth) % 3 == 2


def _settings(asked: object) -> Quantization:
    """
    Raises:
        UsageError: see ``recipe``.
    """
    if isinstance(asked, str):
        return _defaults(asked)
    if isinstance(asked, int) and not isinstance(asked, bool):
        asked = replace(_defaults("affine"), bits=asked)
    if not isinstance(asked, Quantization):
        raise UsageError(
            "quantize= is neither a number of bits, nor settings, nor a recipe",
            expected='4, "mxfp4", core.weights.Quantization(4, 64), "mixed_4_6" or {"*.v_proj": 6, "*": 4}',
            found=repr(asked),
        )
    problem = refusal(asked)
    if problem is not None:
        raise UsageError(
            f"quantize= asks for {asked}, which the installed MLX {version('mlx')} does not have", found=problem
        )
    return asked


def _defaults(mode: str) -> Quantization:
    """A mode's own bits and group size, found by quantizing a matrix with MLX."""
    columns = 1 << 12
    try:
        weight, scales, *_ = mx.quantize(mx.zeros((1, columns)), mode=mode)
    except ValueError as error:
        raise UsageError(
            f"quantize={mode!r} names no recipe, and no mode of the installed MLX {version('mlx')}",
            expected=f"a mode, or one of {', '.join(_MIXED)}",
            found=first_line(error),
        ) from None
    return Quantization(weight.shape[-1] * 32 // columns, columns // scales.shape[-1], mode)
