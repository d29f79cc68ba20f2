"""Writes a Mistral or a Mixtral as a GGUF file, with one tensor in memory at a time.

It runs in llama.cpp's process and imports nothing of core. Weights have Hugging Face's names.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Defaults of keys that a config leaves out, for Mistral and for Mixtral.
_DEFAULTS: dict[str, dict[str, float]] = {
    "mistral": {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 131072, "num_key_value_heads": 8},
    "mixtral": {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131072, "num_key_value_heads": 8},
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file.

    Attributes:
        name: in the file.
        sources: Hugging Face's names; several are experts, which become one tensor.
        shape: of each source.
        heads: number of heads whose rotary pairs are to be put side by side; 0 keeps the rows as they are.
        small: it is stored in float32.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    heads: int = 0
    small: bool = False


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The config with every key that the file needs.

    Raises:
        ValueError: the model is neither a Mistral nor a Mixtral, or its rotary embedding is scaled.
    """
    kind = config["model_type"]
    if kind not in _DEFAULTS:
        raise ValueError(f"GGUF files can be written for mistral and mixtral, not for {kind}")
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise ValueError("GGUF files are written with plain rotary embeddings only, and this config scales them")
    found = {**_DEFAULTS[kind], **{key: value for key, value in config.items() if value is not None}}
    found["rope_theta"] = rope.get("rope_theta", found["rope_theta"])
    found.setdefault("head_dim", found["hidden_size"] // found["num_attention_heads"])
    return found


def tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """All tensors of a completed config, in the order of the file."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads, head_dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    yield Tensor("token_embd.weight", ("model.embed_tokens.weight",), (vocab, hidden))
    for index in range(config["num_hidden_layers"]):
        to, of = f"blk.{index}.", f"model.layers.{index}."
        attention = of + "self_attn."
        yield Tensor(to + "attn_norm.weight", (of + "input_layernorm.weight",), (hidden,), small=True)
        yield Tensor(to + "attn_q.weight", (attention + "q_proj.weight",), (heads * head_dim, hidden), heads)
        yield Tensor(to + "attn_k.weight", (attention + "k_proj.weight",), (kv_heads * head_dim, hidden), kv_heads)
        yield Tensor(to + "attn_v.weight", (attention + "v_proj.weight",), (kv_heads * head_dim, hidden))
        yield Tensor(to + "attn_output.weight", (attention + "o_proj.weight",), (hidden, heads * head_dim))
        yield Tensor(to + "ffn_norm.weight", (of + "post_attention_layernorm.weight",), (hidden,), small=True)
        shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        if config["model_type"] == "mistral":
            for part, shape in shapes.items():
                yield Tensor(f"{to}ffn_{part}.weight", (f"{of}mlp.{part}_proj.weight",), shape)
            continue
        count, moe = config["num_local_experts"], of + "block_sparse_moe."
        yield Tensor(to + "ffn_gate_inp.weight", (moe + "gate.weight",), (count, hidden), small=True)
        for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            names = tuple(f"{moe}experts.{expert}.{name}.weight" for expert in range(count))
            yield Tensor(f"{to}ffn_{part}_exps.weight", names, shapes[part])
    yield Tensor("output_norm.weight", ("model.norm.weight",), (hidden,), small=True)
    if not config.get("tie_word_embeddings", False):
        yield Tensor("output.weight", ("lm_head.weight",), (vocab, hidden))


def write(path: Path, config: dict[str, Any], kind: str, weight: Callable[[str, tuple[int, ...]], Any]) -> None:
    """Writes the file, without a tokenizer.

    Args:
        path: the file.
        config: completed.
        kind: ``F32``, ``F16``, ``BF16``, ``Q8_0`` or ``Q4_0``: of all matrices except routers, which are in float32. A
            matrix whose row length is not a multiple of 32 cannot be quantized, and is in float16.
        weight: returns the float32 array of a name and a shape.
    """
    import gguf

    writer = gguf.GGUFWriter(None, "llama")
    _describe(writer, config)
    table = list(tensors(config))
    kinds = [_kind(gguf, kind, tensor) for tensor in table]
    for tensor, chosen in zip(table, kinds, strict=True):
        shape = (len(tensor.sources), *tensor.shape) if len(tensor.sources) > 1 else tensor.shape
        dtype: np.dtype[Any] = np.dtype(np.uint8)
        raw = chosen
        if chosen.name in ("F32", "F16"):
            dtype, raw = np.dtype(np.float32 if chosen.name == "F32" else np.float16), None
            size = int(np.prod(shape)) * dtype.itemsize
        else:
            shape = gguf.quants.quant_shape_to_byte_shape(shape, chosen)
            size = int(np.prod(shape))
        writer.add_tensor_info(tensor.name, shape, dtype, size, raw_dtype=raw)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, chosen in zip(table, kinds, strict=True):
        parts = []
        for name in tensor.sources:
            array = weight(name, tensor.shape)
            if tensor.heads:
                array = side_by_side(array, tensor.heads)
            parts.append(gguf.quants.quantize(array, chosen))
        writer.write_tensor_data(np.stack(parts) if len(parts) > 1 else parts[0])
    writer.close()


def side_by_side(rows: Any, heads: int) -> Any:
    """Puts the two rows of each rotary pair side by side: llama.cpp rotates neighbours, Hugging Face's models
    halves."""
    halves = rows.reshape(heads, 2, -1, rows.shape[-1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _kind(gguf: Any, kind: str, tensor: Tensor) -> Any:
    types = gguf.GGMLQuantizationType
    if tensor.small:
        return types.F32
    return types.F16 if kind.startswith("Q") and tensor.shape[-1] % 32 else types[kind]


def _describe(writer: Any, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    if config["model_type"] == "mixtral":
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
