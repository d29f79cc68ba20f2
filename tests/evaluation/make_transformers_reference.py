"""Writes ``transformers_perplexity.json``: what Hugging Face's recipe finds, with transformers, in float32 on a CPU.

    python tests/evaluation/make_transformers_reference.py

Needs torch and transformers, which the project does not. The loop is the one of transformers' documentation
("Perplexity of fixed-length models"); the losses of single tokens are taken from the same logits in float64.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "fixtures"
CORPUS = HERE.parents[1] / "examples" / "corpus" / "tinyshakespeare.txt"
CHARACTERS = 1200
STRIDES = {
    "stories": [(512, 256), (64, 32), (64, 64), (100, 30)],
    "mistral_swa8": [(64, 32), (48, 48)],
    "mixtral_swa8": [(64, 16)],
    "mistral_tied": [(64, 32)],
}
PER_TOKEN = ("stories", (64, 32))
KL = ("mistral_tied", "mistral_headdim32")


def recipe(model: Any, ids: torch.Tensor, max_length: int, stride: int, per_token: bool) -> dict[str, Any]:
    """The recipe's loop, with what it sees on the way."""
    seq_len = ids.size(1)
    nll_sum, n_tokens, prev_end_loc = 0.0, 0, 0
    windows, losses = [], []
    for begin_loc in range(0, seq_len, stride):
        end_loc = min(begin_loc + max_length, seq_len)
        trg_len = end_loc - prev_end_loc
        input_ids = ids[:, begin_loc:end_loc]
        target_ids = input_ids.clone()
        target_ids[:, :-trg_len] = -100
        labels = target_ids[0, 1:]
        if (labels != -100).any():  # the recipe's own loss would be NaN
            with torch.no_grad():
                outputs = model(input_ids, labels=target_ids)
            weight = (target_ids != -100).sum().item() - 1
            nll_sum += outputs.loss.item() * weight
            n_tokens += weight
            windows.append([begin_loc, end_loc, int((labels != -100).sum()), outputs.loss.item()])
            log_probs = torch.log_softmax(outputs.logits[0, :-1].double(), dim=-1)
            kept = labels != -100
            losses += (-log_probs[kept].gather(1, labels[kept][:, None])[:, 0]).tolist()
        prev_end_loc = end_loc
        if end_loc == seq_len:
            break
    found = {
        "context": max_length,
        "stride": stride,
        "windows": windows,
        "recipe_nats": nll_sum / n_tokens,
        "tokens": len(losses),
        "nats_per_token": sum(losses) / len(losses),
    }
    return found | ({"losses": [round(loss, 5) for loss in losses]} if per_token else {})


def divergences(reference: Any, model: Any, ids: torch.Tensor) -> list[float]:
    """KL(reference ‖ model) of every prediction in one window, in float64."""
    with torch.no_grad():
        log_p, log_q = (torch.log_softmax(m(ids).logits[0, :-1].double(), dim=-1) for m in (reference, model))
    return (log_p.exp() * (log_p - log_q)).sum(-1).tolist()


def load(name: str) -> tuple[Any, Path]:
    path = FIXTURES / "stories" / "stories260K-mistral" if name == "stories" else FIXTURES / "oracles" / name
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), path


def main() -> None:
    text = CORPUS.read_bytes().decode("utf-8")[:CHARACTERS]
    rng = random.Random(0)
    random_ids = [rng.randrange(256) for _ in range(300)]
    found: dict[str, Any] = {
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "characters": CHARACTERS,
        "random_ids": random_ids,
        "models": {},
    }
    for name, variants in STRIDES.items():
        model, path = load(name)
        ids = random_ids
        if name == "stories":
            ids = found["stories_ids"] = transformers.AutoTokenizer.from_pretrained(path)(text).input_ids
        tokens = torch.tensor([ids])
        found["models"][name] = [recipe(model, tokens, *v, per_token=(name, v) == PER_TOKEN) for v in variants]
    tokens = torch.tensor([random_ids])
    reference, model = (load(name)[0] for name in KL)
    values = [round(value, 6) for value in divergences(reference, model, tokens)]
    found["divergence"] = {"reference": KL[0], "model": KL[1], "values": values}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()]
    (HERE / "transformers_perplexity.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
