"""Writes checkpoints whose headers are real and whose weights are holes: any size of model in a few kilobytes of disk.

A file is created with its header and then extended with `truncate`, so that every tensor reads as zeros and takes no
blocks. What reads more than headers from such a checkpoint can still be caught by counting its reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.checkpoint import DTYPES

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""dtype (safetensors' spelling) and shape of each tensor, by name."""


def header_of(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> tuple[bytes, int]:
    """The header of a safetensors file that holds `tensors` in that order, and the bytes of data that follow it."""
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    stop = 0
    for name, (dtype, shape) in tensors.items():
        start, stop = stop, stop + math.prod(shape) * DTYPES[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
    header = json.dumps(entries).encode()
    return header + b" " * (-len(header) % 8), stop


def write_shard(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """One safetensors file of which only the header takes disk space; its tensors read as zeros."""
    header, data = header_of(tensors, metadata)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + data)
    return path


def write_checkpoint(
    directory: Path, tensors: Tensors, *, shards: int = 1, config: Mapping[str, Any] | None = None
) -> Path:
    """A checkpoint in Hugging Face's layout: ``model.safetensors``, or `shards` files with their index; and a config.

    Tensors go to the shards in order, in runs of equal number. Returns `directory`, which is created.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(dict(config)))
    if shards == 1:
        write_shard(directory / "model.safetensors", tensors, {"format": "pt"})
        return directory
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        run = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        write_shard(directory / file, {name: tensors[name] for name in run}, {"format": "pt"})
        weight_map |= dict.fromkeys(run, file)
    index = {
        "metadata": {"total_size": sum(header_of({n: t})[1] for n, t in tensors.items())},
        "weight_map": weight_map,
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


MIXTRAL_8X7B: Mapping[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
"""The config of a Mixtral-8x7B: 46,702,792,704 parameters in 995 tensors."""


def mixtral_tensors(config: Mapping[str, Any] = MIXTRAL_8X7B, dtype: str = "BF16") -> Tensors:
    """The tensors of a Mixtral in Hugging Face's layout, one per expert and projection."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = hidden // heads
    tensors: dict[str, tuple[str, Sequence[int]]] = {"model.embed_tokens.weight": (dtype, [vocab, hidden])}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        moe = f"{block}.block_sparse_moe"
        tensors[f"{moe}.gate.weight"] = (dtype, [config["num_local_experts"], hidden])
        for expert in range(config["num_local_experts"]):
            tensors[f"{moe}.experts.{expert}.w1.weight"] = (dtype, [inner, hidden])
            tensors[f"{moe}.experts.{expert}.w2.weight"] = (dtype, [hidden, inner])
            tensors[f"{moe}.experts.{expert}.w3.weight"] = (dtype, [inner, hidden])
        tensors[f"{block}.input_layernorm.weight"] = (dtype, [hidden])
        tensors[f"{block}.post_attention_layernorm.weight"] = (dtype, [hidden])
        for projection, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            tensors[f"{block}.self_attn.{projection}_proj.weight"] = (dtype, [rows * head_dim, hidden])
        tensors[f"{block}.self_attn.o_proj.weight"] = (dtype, [hidden, heads * head_dim])
    tensors["model.norm.weight"] = (dtype, [hidden])
    tensors["lm_head.weight"] = (dtype, [vocab, hidden])
    return tensors


def write_mixtral_8x7b(directory: Path) -> Path:
    """A Mixtral-8x7B in 19 shards: 93,405,585,408 bytes of weights that take no disk space. Returns `directory`."""
    return write_checkpoint(directory, mixtral_tensors(), shards=19, config=MIXTRAL_8X7B)
