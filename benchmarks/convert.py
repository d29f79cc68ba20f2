"""Conversion time and memory beside mlx-lm's ``convert``: a synthetic Mixtral, in turns, each run a process of its own.

    python benchmarks/convert.py [--layers 10] [--bits 4] [--repeats 3] [--directory DIR]

The source is in Hugging Face's layout, random bfloat16 weights (0.41 GB a layer), two layers in a shard. Reported are
wall seconds of the whole process and its peak resident memory. mlx-lm is the peer, never a dependency: install it
beside the project to run its side.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx

SIZE, INTER, EXPERTS, VOCAB = 1024, 8192, 8, 4096
CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": VOCAB,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
TOKENIZER = Path(__file__).parents[1] / "core" / "demos" / "mixtral"


def write_source(directory: Path, layers: int, divisor: int) -> int:
    """A checkpoint of random weights, two layers in a shard; returns its bytes."""
    directory.mkdir(parents=True)
    hidden, inter = SIZE // divisor, INTER // divisor
    sizes = {"hidden_size": hidden, "intermediate_size": inter, "num_hidden_layers": layers}
    (directory / "config.json").write_text(json.dumps(CONFIG | sizes))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, directory / name)
    mx.random.seed(0)

    def matrix(*shape: int) -> mx.array:
        return (mx.random.normal(shape) * 0.02).astype(mx.bfloat16)

    index: dict[str, str] = {}
    count = (layers + 1) // 2
    for number in range(count):
        tensors: dict[str, mx.array] = {}
        if number == 0:
            tensors |= {"model.embed_tokens.weight": matrix(VOCAB, hidden), "lm_head.weight": matrix(VOCAB, hidden)}
            tensors["model.norm.weight"] = mx.ones((hidden,), mx.bfloat16)
        for layer in range(2 * number, min(2 * number + 2, layers)):
            start = f"model.layers.{layer}"
            for part, rows in {"q": hidden, "k": hidden // 4, "v": hidden // 4, "o": hidden}.items():
                tensors[f"{start}.self_attn.{part}_proj.weight"] = matrix(rows, hidden)
            for norm in ("input", "post_attention"):
                tensors[f"{start}.{norm}_layernorm.weight"] = mx.ones((hidden,), mx.bfloat16)
            moe = f"{start}.block_sparse_moe"
            tensors[f"{moe}.gate.weight"] = matrix(EXPERTS, hidden)
            for expert in range(EXPERTS):
                for part, shape in {"w1": (inter, hidden), "w2": (hidden, inter), "w3": (inter, hidden)}.items():
                    tensors[f"{moe}.experts.{expert}.{part}.weight"] = matrix(*shape)
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        mx.save_safetensors(str(directory / name), tensors, {"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def measured(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{said.decode()[-2000:]}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--bits", type=int, default=4, choices=(2, 3, 4, 6, 8, 16), help="16: no quantization")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--divisor", type=int, default=1, help="of the model's sizes, to try this script")
    parser.add_argument("--directory", type=Path, help="where to work; it must have room for twice the model")
    arguments = parser.parse_args()
    bits = arguments.bits
    with tempfile.TemporaryDirectory(dir=arguments.directory) as work:
        source, target = Path(work) / "source", Path(work) / "target"
        # In a process of its own: a child's peak counts that of the process it was forked from.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            size = pool.apply(write_source, (source, arguments.layers, arguments.divisor))
        quantize = [] if bits == 16 else ["--bits", str(bits), "--group-size", "64"]
        peer = [] if bits == 16 else ["-q", "--q-bits", str(bits), "--q-group-size", "64"]
        sides = {
            "core": [sys.executable, "-m", "core", "convert", str(source), str(target), "--layout", "mlx", *quantize],
            "mlx-lm": [
                *(sys.executable, "-m", "mlx_lm", "convert"),
                *("--hf-path", str(source), "--mlx-path", str(target), *peer),
            ],
        }
        if importlib.util.find_spec("mlx_lm") is None:
            del sides["mlx-lm"]
        runs: dict[str, list[tuple[float, int]]] = {name: [] for name in sides}
        for _ in range(arguments.repeats):
            for name, command in sides.items():
                runs[name].append(measured(command))
                shutil.rmtree(target)
        print(f"{size:,} bytes, {arguments.layers} layers, to {bits} bits, layout mlx, MLX {mx.__version__}")
        for name, found in runs.items():
            seconds = [one for one, _ in found]
            spread = f"{min(seconds):.1f}–{max(seconds):.1f}"
            memory = max(peak for _, peak in found) / 1e6
            print(f"  {name:7} {statistics.median(seconds):6.1f} s ({spread}), peak {memory:,.0f} MB resident")


if __name__ == "__main__":
    main()
