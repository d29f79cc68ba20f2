"""Trains the bundled demo models: tiny ones of the built-in architectures, on Shakespeare's plays, saved in 4 bits.

    python examples/train_demo.py mistral --out core/demos/mistral
    python examples/train_demo.py mixtral --out core/demos/mixtral

It shows what a plugin gives beyond loading: the same blocks train through ``mlx.optimizers``, and the same weight map
that loads a checkpoint names the tensors when one is written. About one minute each on an NVIDIA H200.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import core
from core.weights import checkpoint_tensors

CORPUS = Path(__file__).parent / "corpus" / "tinyshakespeare.txt"
BOS, EOS = "<s>", "</s>"
VOCAB = 1024
CONTEXT = 256  # tokens of a training window: four times the sliding window
BATCH = 64
GROUP_SIZE = 64
BALANCE = 0.01  # weight of the router's load-balancing loss

SHARED = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 64,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": VOCAB,
}
CONFIGS = {
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": 192,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}


RECIPES = {"mistral": {"steps": 400, "learning_rate": 1e-3}, "mixtral": {"steps": 500, "learning_rate": 1e-3}}


def split_corpus() -> tuple[str, str]:
    """Training text, and the last 10 % of the lines, which are held out."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines(keepends=True)
    cut = len(lines) * 9 // 10
    return "".join(lines[:cut]), "".join(lines[cut:])


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE with ``VOCAB`` tokens, trained on the training text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def batches(tokenizer: Tokenizer, text: str, rng: np.random.Generator, dropout: float) -> Iterator[mx.array]:
    """Random windows ``[BATCH, CONTEXT + 1]``, for ever; each pass over the text segments it anew.

    Leaving out merges at random (BPE-dropout, Provilkov et al., 2020) is the only regulariser that a text of this size
    needs: a model sees the same sentence in other tokens each time.
    """
    pieces = text.split("\n\n")
    while True:
        tokenizer.model.dropout = dropout
        encoded = tokenizer.encode_batch([piece + "\n\n" for piece in pieces])
        tokenizer.model.dropout = None
        ids = np.array([0] + [token for piece in encoded for token in piece.ids], dtype=np.int32)
        for _ in range(len(ids) // (BATCH * CONTEXT)):
            starts = rng.integers(0, len(ids) - CONTEXT - 1, size=BATCH)
            windows = np.stack([ids[start : start + CONTEXT + 1] for start in starts])
            windows[rng.random(BATCH) < 0.1, 0] = 0  # BOS begins a text anywhere
            yield mx.array(windows)


class Recorder(nn.Module):
    """A router that stores its last scores, for the balancing loss; only used while training."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router
        self._scores: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        self._scores = self.router(x)
        return self._scores


def balance_loss(scores: mx.array, k: int) -> mx.array:
    """Load balancing of the Switch Transformer (Fedus et al., 2021): 1 when all experts get the same share."""
    experts = scores.shape[-1]
    probabilities = mx.softmax(scores.reshape(-1, experts).astype(mx.float32), axis=-1)
    chosen = mx.argpartition(-probabilities, kth=k - 1, axis=-1)[:, :k]
    share = (chosen[..., None] == mx.arange(experts)).astype(mx.float32).sum(axis=1).mean(axis=0) / k
    return experts * (mx.stop_gradient(share) * probabilities.mean(axis=0)).sum()


def routers(model: nn.Module) -> list[Recorder]:
    return [module for _, module in model.named_modules() if isinstance(module, Recorder)]


def loss_fn(model: nn.Module, windows: mx.array, k: int) -> mx.array:
    logits = model(windows[:, :-1]).astype(mx.float32)
    loss = nn.losses.cross_entropy(logits, windows[:, 1:], reduction="mean")
    for recorder in routers(model):
        loss = loss + BALANCE * balance_loss(recorder._scores, k)
    return loss


def train(
    model: nn.Module, tokenizer: Tokenizer, text: str, held_out: str, k: int, options: argparse.Namespace
) -> None:
    """Trains in place and keeps the parameters with the lowest held-out loss."""
    model.train()
    steps, peak = options.steps, options.learning_rate
    warmup = max(1, min(100, steps // 10))
    schedule = optim.join_schedules(
        [optim.linear_schedule(0, peak, warmup), optim.cosine_decay(peak, steps - warmup, peak / 100)], [warmup]
    )
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.95], weight_decay=options.weight_decay)
    value_and_grad = nn.value_and_grad(model, lambda windows: loss_fn(model, windows, k))
    data = batches(tokenizer, text, np.random.default_rng(options.seed), options.dropout)
    best, best_weights = math.inf, None
    started = time.perf_counter()
    for step in range(1, steps + 1):
        loss, gradients = value_and_grad(next(data))
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(model.state, optimizer.state, loss)
        if step % 100 == 0 or step == steps:
            nats = evaluate(model, tokenizer, held_out)[0]
            seconds = time.perf_counter() - started
            print(f"step {step}: loss {loss.item():.3f}, held-out {nats:.3f} nats a token, {seconds:.0f} s", flush=True)
            if nats < best:
                best, best_weights = nats, tree_map(lambda a: a + 0, model.parameters())
                mx.eval(best_weights)
    model.update(best_weights)
    model.eval()


def evaluate(model: nn.Module, tokenizer: Tokenizer, text: str) -> tuple[float, float]:
    """Held-out loss: nats a token, and bits a character; windows of ``CONTEXT`` tokens that overlap by half.

    Each token is scored once, in the half of a window that has the other half as its context.
    """
    ids = np.array([0, *tokenizer.encode(text).ids], dtype=np.int32)
    half = CONTEXT // 2
    starts = range(0, len(ids) - CONTEXT, half)
    windows = np.stack([ids[start : start + CONTEXT + 1] for start in starts])
    total, count = 0.0, 0
    for begin in range(0, len(windows), BATCH):
        part = mx.array(windows[begin : begin + BATCH])
        losses = nn.losses.cross_entropy(model(part[:, :-1]).astype(mx.float32), part[:, 1:], reduction="none")
        kept = losses[:, half:]
        total += kept.sum().item()
        count += kept.size
        if begin == 0:
            total += losses[0, :half].sum().item()
            count += half
    characters = len(text) * count / (len(ids) - 1)
    return total / count, total / math.log(2) / characters


def save(out: Path, config: dict, model: nn.Module, weight_map: core.weights.WeightMap, tokenizer: Tokenizer) -> None:
    """Writes a checkpoint: weights by the plugin's own map, config, tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = checkpoint_tensors(model, weight_map)
    mx.save_safetensors(str(out / "model.safetensors"), tensors, metadata={"format": "mlx"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "generation_config.json").write_text(
        json.dumps(
            {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.8, "top_p": 0.95}, indent=2
        )
        + "\n"
    )
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    settings = {"add_bos_token": True, "add_eos_token": False, "bos_token": BOS, "eos_token": EOS}
    settings |= {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=CONFIGS)
    parser.add_argument("--out", type=Path, required=True, help="directory for the 4-bit checkpoint")
    parser.add_argument("--full", type=Path, help="directory for the checkpoint in full precision, too")
    parser.add_argument("--steps", type=int, help="default: the architecture's own recipe")
    parser.add_argument("--learning-rate", type=float, help="peak, after a linear warm-up; default as for --steps")
    parser.add_argument("--dropout", type=float, default=0.1, help="share of the tokenizer's merges left out at random")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for name, value in RECIPES[arguments.architecture].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)

    text, held_out = split_corpus()
    tokenizer = train_tokenizer(text)
    config = CONFIGS[arguments.architecture] | SHARED
    mx.random.seed(arguments.seed)
    built = core.build(config)
    model, layout = built.model, "mlx" if arguments.architecture == "mixtral" else "hf"
    weight_map = built.plugin.weight_map(built.config, layout)
    count = sum(array.size for _, array in tree_flatten(model.parameters()))
    print(f"{arguments.architecture}: {count:,} parameters, {len(tokenizer.encode(text).ids):,} training tokens")

    for layer in model.layers:
        if "block_sparse_moe" in layer:
            layer.block_sparse_moe.gate = Recorder(layer.block_sparse_moe.gate)
    train(model, tokenizer, text, held_out, config.get("num_experts_per_tok", 0), arguments)
    for layer in model.layers:
        if "block_sparse_moe" in layer:
            layer.block_sparse_moe.gate = layer.block_sparse_moe.gate.router

    model.set_dtype(mx.bfloat16)
    results = {"bfloat16": evaluate(model, tokenizer, held_out)}
    if arguments.full:
        save(arguments.full, config, model, weight_map, tokenizer)
    nn.quantize(
        model,
        group_size=GROUP_SIZE,
        bits=4,
        class_predicate=lambda path, module: built.plugin.quantize_module(built.config, path, module),
    )
    results["4-bit"] = evaluate(model, tokenizer, held_out)
    block = {"group_size": GROUP_SIZE, "bits": 4}
    save(arguments.out, config | {"quantization": block, "quantization_config": block}, model, weight_map, tokenizer)
    for name, (nats, bits) in results.items():
        print(f"{name}: held-out perplexity {math.exp(nats):.2f} a token, {bits:.3f} bits a character")
    print(f"{sum(file.stat().st_size for file in arguments.out.iterdir()):,} bytes in {arguments.out}")


if __name__ == "__main__":
    main()
