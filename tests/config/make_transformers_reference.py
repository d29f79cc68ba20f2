"""Records what transformers makes of a table of configs: ``transformers_configs.json`` and ``transformers_rope.npz``.

Needs torch and transformers, which the tests do not: run it by hand with an environment that has them,
``python tests/config/make_transformers_reference.py``, after a change of the table or for a new transformers.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import MistralConfig, MixtralConfig
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding
from transformers.models.mixtral.modeling_mixtral import MixtralRotaryEmbedding

HERE = Path(__file__).parent
CLASSES = {"mistral": (MistralConfig, MistralRotaryEmbedding), "mixtral": (MixtralConfig, MixtralRotaryEmbedding)}
SIZES = {
    "vocab_size": 256,
    "hidden_size": 1024,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
FULL = {**SIZES, "head_dim": 128, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_theta": 10000.0}

FACTORS = {"short_factor": [1 + i / 64 for i in range(64)], "long_factor": [2 + i / 8 for i in range(64)]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear by its old name": {"type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
    "yarn, length by default": {"rope_type": "yarn", "factor": 8.0},
    "yarn, mscale": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 2048,
        "mscale": 0.8,
        "mscale_all_dim": 1.2,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    "yarn, mscale alone": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192, "mscale": 2.0},
    "yarn, not truncated": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 8192,
        "truncate": False,
    },
    "yarn, attention factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": 1.5,
    },
    "yarn, a short original": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "longrope": {"rope_type": "longrope", **FACTORS, "original_max_position_embeddings": 4096},
    "longrope, factor": {
        "rope_type": "longrope",
        **FACTORS,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
    },
    "longrope, attention factor": {
        "rope_type": "longrope",
        **FACTORS,
        "attention_factor": 1.25,
        "original_max_position_embeddings": 4096,
    },
}
THETAS = (10000.0, 1e6)
POSITIONS = (0, 1, 5, 100, 4095, 4096, 32767, 32768, 50000)

# Name → keys set beside SIZES. A key's absence is the point of most.
CONFIGS: dict[str, dict[str, Any]] = {
    "sizes alone": {},
    "head_dim null": {"head_dim": None},
    "head_dim explicit": {"head_dim": 32},
    "head_dim not a divisor": {"hidden_size": 1030},
    "num_key_value_heads null": {"num_key_value_heads": None},
    "num_key_value_heads explicit": {"num_key_value_heads": 2},
    "num_attention_heads 32": {"num_attention_heads": 32},
    "sliding_window null": {"sliding_window": None},
    "sliding_window explicit": {"sliding_window": 7},
    "rms_norm_eps": {"rms_norm_eps": 1e-4},
    "tied": {"tie_word_embeddings": True},
    "not tied": {"tie_word_embeddings": False},
    "max_position_embeddings": {"max_position_embeddings": 777},
    "rope_theta": {"rope_theta": 5e5},
    "rope_theta an integer": {"rope_theta": 1000000},
    "rope_scaling null": {"rope_theta": 5e5, "rope_scaling": None},
    "rope_scaling empty": {"rope_theta": 5e5, "rope_scaling": {}},
    "rope_parameters null": {"rope_theta": 5e5, "rope_parameters": None},
    "rope_parameters without theta": {"rope_parameters": {"rope_type": "default"}},
    "rope_parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 3e5}},
    "rope_parameters without a type": {"rope_parameters": {"rope_theta": 3e5}},
    "both thetas": {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 3e5}},
    "theta in rope_scaling": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 3e5}},
    "both spellings": {
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 3e5, **LLAMA3},
    },
    "both types": {"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2.0}},
    "yarn, factor null": {"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 4096}},
    "original length beside": {
        "original_max_position_embeddings": 1024,
        "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048},
    },
    "num_local_experts": {"num_local_experts": 5, "num_experts_per_tok": 3},
    "num_experts": {"num_experts": 4},
    **{f"rope_scaling: {name}": {"rope_theta": 5e5, "rope_scaling": value} for name, value in SCALINGS.items()},
    **{
        f"rope_parameters: {name}": {"rope_parameters": {"rope_theta": 5e5} | value} for name, value in SCALINGS.items()
    },
}


def effective(config: Any) -> dict[str, Any]:
    """What the model's code would compute with."""
    config.standardize_rope_params()  # as every scaled embedding does once more when the model is built
    rope = {key: value for key, value in config.rope_parameters.items() if value is not None and key != "type"}
    if rope["rope_type"] == "yarn" and "factor" not in rope:
        rope["factor"] = config.max_position_embeddings / rope["original_max_position_embeddings"]
    values = {
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "rope_parameters": rope,
    }
    names = "num_key_value_heads sliding_window rms_norm_eps tie_word_embeddings max_position_embeddings hidden_act"
    experts = "num_local_experts num_experts_per_tok" if config.model_type == "mixtral" else ""
    return values | {name: getattr(config, name) for name in f"{names} {experts}".split()}


def outcome(cls: Any, raw: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"effective": effective(cls.from_dict(copy.deepcopy(raw)))}
    except StrictDataclassError as error:
        return {"refused": " ".join(str(error).split())}


def configs() -> dict[str, Any]:
    rows = []
    for model_type, (cls, _) in CLASSES.items():
        for name, changes in CONFIGS.items():
            raw = {"model_type": model_type, **SIZES, **changes}
            rows.append({"name": name, "raw": raw} | outcome(cls, raw))
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return {"versions": versions, "rows": rows}


def rotations() -> dict[str, np.ndarray]:
    """For each case: attention factor, and inverse frequencies and half of cos and sin at each of ``POSITIONS``."""
    arrays: dict[str, np.ndarray] = {"positions": np.array(POSITIONS)}
    cases = {}
    for model_type, (cls, rotary) in CLASSES.items():
        for name, scaling in SCALINGS.items():
            theta = THETAS[len(cases) % 2]
            raw = {"model_type": model_type, **FULL, "rope_theta": theta, "rope_scaling": scaling}
            case = f"{model_type}: {name}"
            cases[case] = raw
            found: dict[str, list[np.ndarray]] = {"inv_freq": [], "cos": [], "sin": []}
            for position in POSITIONS:
                module = rotary(cls.from_dict(copy.deepcopy(raw)))  # a fresh one: dynamic scaling remembers
                cos, sin = module(torch.zeros(1, dtype=torch.float32), torch.tensor([[position]]))
                found["inv_freq"].append(module.inv_freq.numpy().copy())
                found["cos"].append(cos[0, 0, : cos.shape[-1] // 2].numpy())
                found["sin"].append(sin[0, 0, : sin.shape[-1] // 2].numpy())
            arrays |= {f"{case}/{key}": np.stack(value).astype(np.float32) for key, value in found.items()}
            arrays[f"{case}/attention_factor"] = np.array(module.attention_scaling)
    arrays["cases"] = np.array(json.dumps(cases))
    return arrays


if __name__ == "__main__":
    recorded = configs()
    rows = ",\n".join(json.dumps(row) for row in recorded["rows"])
    versions = json.dumps(recorded["versions"])
    (HERE / "transformers_configs.json").write_text(f'{{"versions": {versions}, "rows": [\n{rows}\n]}}\n')
    np.savez_compressed(HERE / "transformers_rope.npz", **rotations())
