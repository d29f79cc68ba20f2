"""Where OLMo 2's parameters come from: Hugging Face's names, which mlx-lm uses too."""

from __future__ import annotations

from core.weights import Concat, Source, WeightMap

from .config import Olmo2Config

OURS = "layers.{layer}"
THEIRS = "model.layers.{layer}"


def hf_weight_map(config: Olmo2Config) -> WeightMap:
    """Target → source; a rule covers ``weight``, ``bias``, ``scales`` and ``biases`` of what it names."""
    attention = f"{THEIRS}.self_attn"
    rules: dict[str, Source] = {
        "embed_tokens": "model.embed_tokens",
        f"{OURS}.self_attn.qkv_proj": Concat(f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"),
        f"{OURS}.self_attn.q_norm": f"{attention}.q_norm",
        f"{OURS}.self_attn.k_norm": f"{attention}.k_norm",
        f"{OURS}.self_attn.o_proj": f"{attention}.o_proj",
        f"{OURS}.post_attention_layernorm": f"{THEIRS}.post_attention_layernorm",
        f"{OURS}.mlp.gate_up_proj": Concat(f"{THEIRS}.mlp.gate_proj", f"{THEIRS}.mlp.up_proj"),
        f"{OURS}.mlp.down_proj": f"{THEIRS}.mlp.down_proj",
        f"{OURS}.post_feedforward_layernorm": f"{THEIRS}.post_feedforward_layernorm",
        "norm": "model.norm",
    }
    ignored = {}
    if config.tie_word_embeddings:
        ignored = {f"lm_head.{role}": "tied to model.embed_tokens" for role in ("weight", "scales", "biases")}
    else:
        rules["lm_head"] = "lm_head"
    return WeightMap(rules, {"layer": range(config.num_hidden_layers)}, ignored)
