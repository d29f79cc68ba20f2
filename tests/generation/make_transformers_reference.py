"""Writes ``transformers_processors.npz``: what transformers' logits processors make of random logits.

The processors and their order are those that ``generate`` builds from a ``GenerationConfig``. Run it with torch and
transformers installed: ``python tests/generation/make_transformers_reference.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
VOCAB, ROWS, HISTORY = 211, 4, 30
GENERATED = (0, 7)  # of the histories, the last tokens

# Settings of a GenerationConfig, named as ours. Absent ones do nothing.
CASES: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_k, more than there are": {"top_k": 1000},
    "top_p": {"top_p": 0.8},
    "top_p, tiny": {"top_p": 1e-4},
    "min_p": {"min_p": 0.05},
    "min_p, one": {"min_p": 1.0},
    "typical_p": {"typical_p": 0.6},
    "typical_p, small": {"typical_p": 0.05},
    "repetition": {"repetition_penalty": 1.3},
    "repetition, a reward": {"repetition_penalty": 0.7},
    "bias": {"logit_bias": {"3": 2.5, "5": -1.5, "210": 7.0}},
    "temperature, top_p": {"temperature": 1.7, "top_p": 0.9},
    "temperature, min_p": {"temperature": 0.4, "min_p": 0.01},
    "temperature, typical_p": {"temperature": 2.0, "typical_p": 0.5},
    "top_k, top_p": {"top_k": 20, "top_p": 0.7},
    "top_p, min_p": {"top_p": 0.95, "min_p": 0.2},
    "top_k, typical_p": {"top_k": 12, "typical_p": 0.4},
    "bias, repetition": {"logit_bias": {"3": 2.5, "5": -1.5}, "repetition_penalty": 1.8},
    "all": {
        "logit_bias": {"3": 2.5, "5": -1.5, "17": 4.0},
        "repetition_penalty": 1.2,
        "temperature": 1.4,
        "top_k": 40,
        "top_p": 0.92,
        "min_p": 0.02,
        "typical_p": 0.9,
    },
}


# What is forbidden, after histories that repeat themselves. ``bad_words_ids`` are completed with the histories' ends.
EOS = [2, 7]
FORBIDDING: dict[str, dict[str, Any]] = {
    "suppress": {"suppress_tokens": [3, 5, 210]},
    "begin suppress": {"begin_suppress_tokens": [3, 2, 9]},
    "no 1-gram twice": {"no_repeat_ngram_size": 1},
    "no 2-gram twice": {"no_repeat_ngram_size": 2},
    "no 3-gram twice": {"no_repeat_ngram_size": 3},
    "no 31-gram twice": {"no_repeat_ngram_size": 31},
    "bad words": {"bad_words_ids": [[11], [2], [7, 7]]},
    "min new": {"min_new_tokens": 7},
    "min new, one more": {"min_new_tokens": 8},
    "min length": {"min_length": 30},
    "min length, one more": {"min_length": 31},
    "several": {
        "suppress_tokens": [3],
        "begin_suppress_tokens": [100],
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[13]],
        "min_new_tokens": 8,
        "repetition_penalty": 1.5,
        "temperature": 0.6,
        "top_k": 50,
        "top_p": 0.9,
    },
}


def processed(
    settings: dict[str, Any],
    ids: torch.Tensor,
    logits: torch.Tensor,
    *,
    prompt: int = HISTORY,
    eos: list[int] | None = None,
) -> np.ndarray:
    options = dict(settings)
    bias = options.pop("logit_bias", None)
    config = transformers.GenerationConfig(
        do_sample=True,
        **({"top_k": 0, "temperature": 1.0} | options),
        sequence_bias=None if bias is None else [[[int(token)], value] for token, value in bias.items()],
    )
    config._eos_token_tensor = None if eos is None else torch.tensor(eos)
    model = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=VOCAB,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )
    processors = model._get_logits_processor(
        config, input_ids_seq_length=prompt, encoder_input_ids=ids, prefix_allowed_tokens_fn=None, device="cpu"
    )
    return processors(ids, logits.clone()).numpy()


if __name__ == "__main__":
    random = np.random.default_rng(1)
    logits = (random.normal(size=(ROWS, VOCAB)) * 3).astype(np.float32)
    ids = random.integers(0, VOCAB, size=(ROWS, HISTORY))
    arrays: dict[str, np.ndarray] = {"logits": logits, "ids": ids}
    for name, settings in CASES.items():
        arrays[f"case {name}"] = processed(settings, torch.tensor(ids), torch.tensor(logits))
    repeating = random.integers(0, 5, size=(ROWS, HISTORY))
    arrays["repeating"] = repeating
    for settings in FORBIDDING.values():
        if "bad_words_ids" in settings:
            ends = repeating.tolist()
            settings["bad_words_ids"] += [[*ends[0][-1:], 20], [*ends[1][-3:], 21], [*ends[2], 22], [0, *ends[3], 23]]
    for name, settings in FORBIDDING.items():
        made = [
            processed(settings, torch.tensor(repeating), torch.tensor(logits), prompt=HISTORY - generated, eos=EOS)
            for generated in GENERATED
        ]
        arrays[f"forbidding {name}"] = np.stack(made)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    arrays["cases"] = np.array(json.dumps({"versions": versions, "cases": CASES} | {"forbidding": FORBIDDING}))
    np.savez_compressed(HERE / "transformers_processors.npz", **arrays)
