"""Prefill and decode speed beside mlx-lm's, in one process tree: random weights of a real shape, batch 1, greedy.

    python benchmarks/decode.py --config tests/fixtures/configs/… --bits 4 [--prompt 32] [--tokens 128] [--repeats 5]

Each side runs in a process of its own, in turns, so that neither warms the other's caches; the table gives medians and
the ratio. mlx-lm is the peer, never a dependency: ``pip install mlx-lm`` beside the project to run this.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path


def measure_core(config: dict, bits: int, prompt: list[int], tokens: int, repeats: int) -> dict[str, list[float]]:
    import mlx.core as mx
    import mlx.nn as nn

    import core
    from core.generation import GenerationStats

    mx.random.seed(0)
    built = core.build(config)
    model = built.model
    model.set_dtype(mx.bfloat16)
    if bits < 16:
        nn.quantize(
            model,
            group_size=64,
            bits=bits,
            class_predicate=lambda path, module: built.plugin.quantize_module(built.config, path, module),
        )
    for layer in model.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())
    runs: dict[str, list[float]] = {"prefill": [], "decode": []}
    for _ in range(repeats + 1):
        stats = GenerationStats()
        list(core.generate_tokens(model, prompt, max_tokens=tokens, stats=stats))
        runs["prefill"].append(stats.prompt_tps)
        runs["decode"].append(stats.decode_tps)
    return {name: values[1:] for name, values in runs.items()}


def measure_mlx_lm(config: dict, bits: int, prompt: list[int], tokens: int, repeats: int) -> dict[str, list[float]]:
    import importlib

    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.generate import generate_step

    # mlx-lm reads Mistral checkpoints with its llama module.
    module = importlib.import_module(
        "mlx_lm.models." + {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    )
    known = {key: value for key, value in config.items() if key in module.ModelArgs.__dataclass_fields__}
    mx.random.seed(0)
    model = module.Model(module.ModelArgs(**known))
    model.set_dtype(mx.bfloat16)
    if bits < 16:
        nn.quantize(model, group_size=64, bits=bits)
    for layer in model.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())
    runs: dict[str, list[float]] = {"prefill": [], "decode": []}
    for _ in range(repeats + 1):
        started = time.perf_counter()
        first = last = started
        for count, _step in enumerate(generate_step(mx.array(prompt), model, max_tokens=tokens)):
            last = time.perf_counter()
            if count == 0:
                first = last
        runs["prefill"].append(len(prompt) / (first - started))
        runs["decode"].append((tokens - 1) / (last - first))
    return {name: values[1:] for name, values in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a config.json")
    parser.add_argument("--layers", type=int, help="use so many layers instead of the config's")
    parser.add_argument("--bits", type=int, default=4, choices=[2, 3, 4, 5, 6, 8, 16])
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", choices=["core", "mlx-lm"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_text())
    if arguments.layers:
        config["num_hidden_layers"] = arguments.layers
    prompt = [(i * 7919 + 13) % (config["vocab_size"] - 3) + 3 for i in range(arguments.prompt)]
    if arguments.side:
        measure = measure_core if arguments.side == "core" else measure_mlx_lm
        print(json.dumps(measure(config, arguments.bits, prompt, arguments.tokens, arguments.repeats)))
        return
    results = {}
    for side in ("core", "mlx-lm"):
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[side] = json.loads(output.splitlines()[-1])
    print(f"{config['model_type']}, {arguments.bits} bits, {arguments.prompt} + {arguments.tokens} tokens")
    for phase in ("prefill", "decode"):
        ours, theirs = (statistics.median(results[side][phase]) for side in ("core", "mlx-lm"))
        spread = "–".join(f"{value:.0f}" for value in (min(results["core"][phase]), max(results["core"][phase])))
        print(f"  {phase}: {ours:.1f} tok/s ({spread}), mlx-lm {theirs:.1f}, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
