"""Tiny checkpoints: a config and random weights, of which nothing matters but that they load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

HIDDEN, INTERMEDIATE, VOCAB, LAYERS, EXPERTS = 8, 16, 32, 2, 4
_SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "vocab_size": VOCAB}
_ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": INTERMEDIATE}


def third_party(path: Path, model_type: str) -> Path:
    """A checkpoint for the plugin of ``plugin_source``."""
    shapes = {"embed": (VOCAB, HIDDEN), "norm": (HIDDEN,), "head": (VOCAB, HIDDEN)}
    shapes |= {f"blocks.{layer}": (HIDDEN, HIDDEN) for layer in range(LAYERS)}
    return write(path, {"model_type": model_type, **_SIZES}, shapes)


def mistral(path: Path, **config: Any) -> Path:
    """A checkpoint for the built-in plugin ``mistral``."""
    return _built_in(path, "mistral", {"mlp.gate_proj": _UP, "mlp.up_proj": _UP, "mlp.down_proj": _DOWN}, config)


def mixtral(path: Path) -> Path:
    """A checkpoint for the built-in plugin ``mixtral``."""
    moe = {"block_sparse_moe.gate": (EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        prefix = f"block_sparse_moe.experts.{expert}"
        moe |= {f"{prefix}.w1": _UP, f"{prefix}.w2": _DOWN, f"{prefix}.w3": _UP}
    return _built_in(path, "mixtral", moe, {"num_local_experts": EXPERTS})


_UP, _DOWN = (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)


def _built_in(path: Path, model_type: str, mlp: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Path:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (VOCAB, HIDDEN),
        "model.norm": (HIDDEN,),
        "lm_head": (VOCAB, HIDDEN),
    }
    block = {
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        **mlp,
    }
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return write(path, {"model_type": model_type, **_SIZES, **_ATTENTION, **config}, shapes)


def write(path: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """``config.json``, and a ``weight`` of each shape."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    weights = {f"{name}.weight": mx.random.normal(shape, scale=0.3) for name, shape in shapes.items()}
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    return path
