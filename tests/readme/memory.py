"""The README's table of memory needs, computed: real configs, headers without weights, and the plan of a load."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

import core
from core.weights import checkpoint_tensors
from tests.checkpoint.sparse import write_checkpoint
from tests.fixtures import real_config

MODELS = {
    "Mistral-7B v0.1 (window of 4,096)": "Mistral-7B-v0.1",
    "Mistral-7B v0.2, v0.3": "Mistral-7B-v0.3",
    "Mistral-Nemo 12B": "Mistral-Nemo-Base-2407",
    "Mistral-Small 24B, Devstral": "Devstral-Small-2507",
    "Mixtral 8x7B": "Mixtral-8x7B-v0.1",
    "Mixtral 8x22B": "WizardLM-2-8x22B",
}
CONTEXT = 32_768
_STORED = {mx.bfloat16: "BF16", mx.uint32: "U32"}


def headers(directory: Path, name: str, bits: int) -> Path:
    """A published model's checkpoint in bfloat16 or quantized, its weights left out."""
    config = real_config(name)
    built = core.build(config)
    built.model.set_dtype(mx.bfloat16)
    if bits < 16:
        config |= {"quantization": {"bits": bits, "group_size": 64}}
        nn.quantize(
            built.model,
            group_size=64,
            bits=bits,
            class_predicate=lambda path, module: built.plugin.quantize_module(built.config, path, module),
        )
    weight_map = built.plugin.weight_map(built.config, "hf")
    assert weight_map is not None
    tensors = checkpoint_tensors(built.model, weight_map)
    shapes = {key: (_STORED[array.dtype], array.shape) for key, array in tensors.items()}
    return write_checkpoint(directory, shapes, config=json.loads(json.dumps(config)))


def memory_table(directory: Path) -> list[str]:
    """One line of Markdown for each model: weights in bfloat16, 8 and 4 bits, and the cache of 32,768 tokens."""
    lines = []
    for label, name in MODELS.items():
        cells = [label]
        for bits in (16, 8, 4):
            plan = core.plan(headers(directory / f"{name}-{bits}", name, bits), dtype=mx.bfloat16)
            assert plan.ok
            cells.append(f"{plan.bytes / 2**30:.1f} GiB")
        cells.append(f"{plan.kv_bytes(CONTEXT) / 2**30:.1f} GiB")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
