"""Where Mistral's parameters come from: Hugging Face's names, which mlx-lm uses too, or Mistral's own."""

from __future__ import annotations

from core.weights import Concat, Permute, Source, WeightMap

from .config import MistralConfig

OURS = "layers.{layer}"


def weight_map_for(config: MistralConfig, layout: str) -> WeightMap | None:
    """The map of one layout, or None for one that Mistral does not have."""
    return {"hf": hf_weight_map, "mistral": native_weight_map}.get(layout, lambda _: None)(config)


def hf_weight_map(config: MistralConfig) -> WeightMap:
    theirs = "model.layers.{layer}"
    rules: dict[str, Source] = {
        "embed_tokens": "model.embed_tokens",
        f"{OURS}.input_layernorm": f"{theirs}.input_layernorm",
        f"{OURS}.self_attn.qkv_proj": Concat(
            f"{theirs}.self_attn.q_proj", f"{theirs}.self_attn.k_proj", f"{theirs}.self_attn.v_proj"
        ),
        f"{OURS}.self_attn.o_proj": f"{theirs}.self_attn.o_proj",
        f"{OURS}.post_attention_layernorm": f"{theirs}.post_attention_layernorm",
        f"{OURS}.mlp.gate_up_proj": Concat(f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj"),
        f"{OURS}.mlp.down_proj": f"{theirs}.mlp.down_proj",
        "norm": "model.norm",
    }
    ignored = {f"{theirs}.self_attn.rotary_emb.inv_freq": "recomputed from the config"}
    if config.tie_word_embeddings:
        ignored |= {f"lm_head.{role}": "tied to model.embed_tokens" for role in ("weight", "scales", "biases")}
    else:
        rules["lm_head"] = "lm_head"
    return WeightMap(rules, {"layer": range(config.num_hidden_layers)}, ignored)


def native_weight_map(config: MistralConfig) -> WeightMap:
    """``consolidated*.safetensors``, as mistral-inference reads it; w1, w3 and w2 are gate, up and down."""
    theirs = "layers.{layer}"
    rules: dict[str, Source] = {
        "embed_tokens": "tok_embeddings",
        f"{OURS}.input_layernorm": f"{theirs}.attention_norm",
        f"{OURS}.self_attn.qkv_proj": Concat(
            Permute(f"{theirs}.attention.wq", config.num_attention_heads),
            Permute(f"{theirs}.attention.wk", config.num_key_value_heads),
            f"{theirs}.attention.wv",
        ),
        f"{OURS}.self_attn.o_proj": f"{theirs}.attention.wo",
        f"{OURS}.post_attention_layernorm": f"{theirs}.ffn_norm",
        f"{OURS}.mlp.gate_up_proj": Concat(f"{theirs}.feed_forward.w1", f"{theirs}.feed_forward.w3"),
        f"{OURS}.mlp.down_proj": f"{theirs}.feed_forward.w2",
        "norm": "norm",
    }
    ignored = {f"{module}.**": "of the vision tower: text only" for module in VISION}
    if config.tie_word_embeddings:
        ignored |= {f"output.{role}": "tied to tok_embeddings" for role in ("weight", "scales", "biases")}
    else:
        rules["lm_head"] = "output"
    return WeightMap(rules, {"layer": range(config.num_hidden_layers)}, ignored)


VISION = ("vision_encoder", "vision_language_adapter", "patch_merger", "pre_mm_projector_norm")
"""Modules of mistral-inference's vision models, beside the text model in the same file."""
