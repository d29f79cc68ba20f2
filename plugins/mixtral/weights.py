"""Where Mixtral's parameters come from: one tensor for each expert (Hugging Face), or all experts stacked (mlx-lm)."""

from __future__ import annotations

from core.weights import Concat, Source, Stack, WeightMap

from .config import MixtralConfig


def weight_map_for(config: MixtralConfig, layout: str) -> WeightMap | None:
    """The map of one layout, or None for one that Mixtral has not."""
    theirs = "model.layers.{layer}"
    expert = f"{theirs}.block_sparse_moe.experts.{{expert}}"
    stacked = f"{theirs}.block_sparse_moe.switch_mlp"
    gate_up: Source
    down: Source
    if layout == "hf":  # w1, w3 and w2 are the gate, up and down projections
        gate_up = Stack(Concat(f"{expert}.w1", f"{expert}.w3"), over="expert")
        down = Stack(f"{expert}.w2", over="expert")
    elif layout == "mlx":
        gate_up = Concat(f"{stacked}.gate_proj", f"{stacked}.up_proj")
        down = f"{stacked}.down_proj"
    else:
        return None
    ours = "layers.{layer}"
    rules: dict[str, Source] = {
        "embed_tokens": "model.embed_tokens",
        f"{ours}.input_layernorm": f"{theirs}.input_layernorm",
        f"{ours}.self_attn.qkv_proj": Concat(
            f"{theirs}.self_attn.q_proj", f"{theirs}.self_attn.k_proj", f"{theirs}.self_attn.v_proj"
        ),
        f"{ours}.self_attn.o_proj": f"{theirs}.self_attn.o_proj",
        f"{ours}.post_attention_layernorm": f"{theirs}.post_attention_layernorm",
        f"{ours}.block_sparse_moe.gate": f"{theirs}.block_sparse_moe.gate",
        f"{ours}.block_sparse_moe.experts.gate_up_proj": gate_up,
        f"{ours}.block_sparse_moe.experts.down_proj": down,
        "norm": "model.norm",
    }
    ignored = {f"{theirs}.self_attn.rotary_emb.inv_freq": "recomputed from the config"}
    if config.tie_word_embeddings:
        ignored |= {f"lm_head.{role}": "tied to model.embed_tokens" for role in ("weight", "scales", "biases")}
    else:
        rules["lm_head"] = "lm_head"
    ranges = {"layer": range(config.num_hidden_layers), "expert": range(config.num_local_experts)}
    return WeightMap(rules, ranges, ignored)
