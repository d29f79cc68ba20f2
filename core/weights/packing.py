"""Reads from a config which tool has packed a checkpoint's integers, GPTQ or AWQ, and in which variant.

The keys are those of ``quantization_config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.errors import QuantizationError

NO_ACT_ORDER = "MLX's groups are consecutive features of a row; take a version quantized with desc_act=False."


@dataclass(frozen=True, slots=True)
class Packing:
    """How another tool has packed a checkpoint's integers.

    Attributes:
        method: the tool's name in ``quant_method``.
        offset: to add to a stored zero point; AutoGPTQ's first format stores zero points minus one.
    """

    method: Literal["gptq", "awq"]
    offset: int = 0


def packing_of(block: Mapping[str, Any], key: str) -> Packing:
    """The packing that a config's block states.

    Raises:
        QuantizationError: a method or variant that is not supported, and why.
    """
    method = block.get("quant_method")
    refused: list[tuple[bool, str, str, object]]
    if method == "gptq":
        version = block.get("checkpoint_format") or "gptq"
        refused = [
            (block.get("bits") not in (2, 4, 8), "bits", "2, 4 or 8", block.get("bits")),
            (version not in ("gptq", "gptq_v2"), "checkpoint_format", "gptq or gptq_v2", version),
            (bool(block.get("is_marlin_format")), "is_marlin_format", "false", True),
            (bool(block.get("dynamic")), "dynamic", "the same settings for all layers", "some of their own"),
            (bool(block.get("desc_act") and not block.get("static_groups")), "desc_act", "false", True),
        ]
        found = Packing("gptq", 1 if version == "gptq" else 0)
    elif method == "awq":
        version = str(block.get("version", "gemm")).lower()
        refused = [
            (block.get("bits") != 4, "bits", "4", block.get("bits")),
            (version != "gemm", "version", "gemm", version),
            (block.get("zero_point", True) is not True, "zero_point", "true", block.get("zero_point")),
        ]
        found = Packing("awq")
    else:
        raise QuantizationError(
            f"the weights are quantized with {method!r}, which is not supported",
            expected="unquantized weights, MLX's own quantization, GPTQ or AWQ",
            hint="Load the unquantized model this one was made from, or an MLX conversion of it.",
        )
    if block.get("group_size") == -1:
        refused.append((True, "group_size", "a group size that MLX has", "-1 (whole rows)"))
    for bad, name, expected, value in refused:
        if bad:
            why = f"{NO_ACT_ORDER} " if name == "desc_act" else ""
            raise QuantizationError(
                f"key '{key}.{name}' says that the {method} weights are of a kind that is not supported",
                expected=expected,
                found=repr(value) if not isinstance(value, str) else value,
                hint=f"{why}Or load the unquantized model this one was made from, or an MLX conversion of it.",
            )
    return found
