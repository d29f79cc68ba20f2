"""The model card of a written checkpoint: where it comes from and what was done to it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version

import core
from core.saving.target import Target
from core.weights import Quantization

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(target: Target, source: str, revision: str | None) -> str:
    """The text of ``README.md``.

    Args:
        source: what was loaded, as the user named it.
        revision: its commit, if it came from a hub.
    """
    front = ["---", "library_name: mlx"]
    if revision is not None and _HUB_ID.fullmatch(source.partition("@")[0]):
        front.append(f"base_model: {source.partition('@')[0]}")
    front += ["tags:", "- mlx", "---"]
    facts = {
        "source": source.rstrip("/").rpartition("/")[2] if revision is None else source,
        "revision": revision or "none (a local directory)",
        "model type": target.model_type,
        "layout": f"{target.layout} (read from {target.read_from})",
        "tensors": f"{sum(len(shard.tensors) for shard in target.shards):,}, {target.parameters:,} parameters",
        "size": f"{target.nbytes:,} bytes in {len(target.shards)} files",
        "quantization": describe_recipe(target.quantized),
        "left out": ", ".join(sorted(set(target.ignored.values()))) or "nothing",
        "written by": f"corelm {core.__version__}, MLX {version('mlx')}",
    }
    rows = [f"| {label} | {text} |" for label, text in facts.items()]
    return "\n".join([*front, "", "# Model card", "", "| | |", "|---|---|", *rows, ""])


def describe_recipe(quantized: Mapping[str, Quantization]) -> str:
    """The settings in use, the commonest first, with the number of matrices of each."""
    counts = Counter(quantized.values()).most_common()
    return "; ".join(f"{settings} ({count} matrices)" for settings, count in counts) or "none"
