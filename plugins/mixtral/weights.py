"""Where Mixtral's parameters come from: the names of attention and norms, and where a layout keeps its experts."""

from __future__ import annotations

from core.weights import Concat, Fused, Permute, Source, Stack, WeightMap, Whole

from .config import MixtralConfig

OURS = "layers.{layer}"
THEIRS = "model.layers.{layer}"


def weight_map_for(config: MixtralConfig, layout: str) -> WeightMap | None:
    """The map of one layout, or None for one that Mixtral does not have."""
    experts = _experts(layout)
    if experts is None:
        return None
    rules = {**(_native(config) if layout == "mistral" else _hugging_face()), **experts}
    ignored = {}
    if layout != "mistral":
        ignored = {f"{THEIRS}.self_attn.rotary_emb.inv_freq": "recomputed from the config"}
    embedding, head = ("tok_embeddings", "output") if layout == "mistral" else ("model.embed_tokens", "lm_head")
    if config.tie_word_embeddings:
        ignored |= {f"{head}.{role}": f"tied to {embedding}" for role in ("weight", "scales", "biases")}
    else:
        rules["lm_head"] = head
    ranges = {"layer": range(config.num_hidden_layers), "expert": range(config.num_local_experts)}
    return WeightMap(rules, ranges, ignored)


def _experts(layout: str) -> dict[str, Source] | None:
    """The router and the experts; w1, w3 and w2 are the gate, up and down projections."""
    moe = f"{OURS}.block_sparse_moe"
    gate, gate_up, down = f"{moe}.gate", f"{moe}.experts.gate_up_proj", f"{moe}.experts.down_proj"
    if layout in ("hf", "mistral"):  # one tensor for each expert
        block = f"{THEIRS}.block_sparse_moe" if layout == "hf" else "layers.{layer}.feed_forward"
        expert = f"{block}.experts.{{expert}}"
        return {
            gate: f"{block}.gate",
            gate_up: Stack(Concat(f"{expert}.w1", f"{expert}.w3"), over="expert"),
            down: Stack(f"{expert}.w2", over="expert"),
        }
    if layout == "hf-fused":  # as transformers 5 holds them in memory: [experts, gate rows then up rows, columns]
        return {
            gate: f"{THEIRS}.mlp.gate",
            gate_up: Fused(Whole(f"{THEIRS}.mlp.experts.gate_up_proj")),
            down: Whole(f"{THEIRS}.mlp.experts.down_proj"),
        }
    if layout == "mlx":
        stacked = f"{THEIRS}.block_sparse_moe.switch_mlp"
        return {
            gate: f"{THEIRS}.block_sparse_moe.gate",
            gate_up: Concat(f"{stacked}.gate_proj", f"{stacked}.up_proj"),
            down: f"{stacked}.down_proj",
        }
    return None


def _hugging_face() -> dict[str, Source]:
    return {
        "embed_tokens": "model.embed_tokens",
        f"{OURS}.input_layernorm": f"{THEIRS}.input_layernorm",
        f"{OURS}.self_attn.qkv_proj": Concat(
            f"{THEIRS}.self_attn.q_proj", f"{THEIRS}.self_attn.k_proj", f"{THEIRS}.self_attn.v_proj"
        ),
        f"{OURS}.self_attn.o_proj": f"{THEIRS}.self_attn.o_proj",
        f"{OURS}.post_attention_layernorm": f"{THEIRS}.post_attention_layernorm",
        "norm": "model.norm",
    }


def _native(config: MixtralConfig) -> dict[str, Source]:
    """``consolidated*.safetensors``, as mistral-inference reads it."""
    theirs = "layers.{layer}"
    return {
        "embed_tokens": "tok_embeddings",
        f"{OURS}.input_layernorm": f"{theirs}.attention_norm",
        f"{OURS}.self_attn.qkv_proj": Concat(
            Permute(f"{theirs}.attention.wq", config.num_attention_heads),
            Permute(f"{theirs}.attention.wk", config.num_key_value_heads),
            f"{theirs}.attention.wv",
        ),
        f"{OURS}.self_attn.o_proj": f"{theirs}.attention.wo",
        f"{OURS}.post_attention_layernorm": f"{theirs}.ffn_norm",
        "norm": "norm",
    }
