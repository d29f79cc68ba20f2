"""Where Mistral's parameters come from in a Hugging Face checkpoint; mlx-lm uses the same names."""

from __future__ import annotations

from core.weights import Concat, Source, WeightMap

from .config import MistralConfig


def hf_weight_map(config: MistralConfig) -> WeightMap:
    ours, theirs = "layers.{layer}", "model.layers.{layer}"
    rules: dict[str, Source] = {
        "embed_tokens": "model.embed_tokens",
        f"{ours}.input_layernorm": f"{theirs}.input_layernorm",
        f"{ours}.self_attn.qkv_proj": Concat(
            f"{theirs}.self_attn.q_proj", f"{theirs}.self_attn.k_proj", f"{theirs}.self_attn.v_proj"
        ),
        f"{ours}.self_attn.o_proj": f"{theirs}.self_attn.o_proj",
        f"{ours}.post_attention_layernorm": f"{theirs}.post_attention_layernorm",
        f"{ours}.mlp.gate_up_proj": Concat(f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj"),
        f"{ours}.mlp.down_proj": f"{theirs}.mlp.down_proj",
        "norm": "model.norm",
    }
    ignored = {f"{theirs}.self_attn.rotary_emb.inv_freq": "recomputed from the config"}
    if config.tie_word_embeddings:
        ignored |= {f"lm_head.{role}": "tied to model.embed_tokens" for role in ("weight", "scales", "biases")}
    else:
        rules["lm_head"] = "lm_head"
    return WeightMap(rules, {"layer": range(config.num_hidden_layers)}, ignored)
