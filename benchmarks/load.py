"""Loading beside mlx-lm's ``load``: a synthetic sharded checkpoint, in turns, each load in a process of its own.

    python benchmarks/load.py [--layers 8] [--bits 16] [--repeats 5] [--directory DIR]

The checkpoint is a Mistral of the 7B's sizes with so many layers, random weights in bfloat16 (0.44 GB a layer and
0.54 GB besides), in shards of a gigabyte; with --bits 4, quantized in groups of 64 (32 layers are then 4.1 GB).
Reported are seconds of the load itself, tokenizer included and imports not, and the process's peak resident memory. The
file cache is warm: the files have just been written, and a first round is not counted. mlx-lm is the peer, never a
dependency: install it beside the project to run its side.
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
from pathlib import Path

import mlx.core as mx

SIZE, INTER, KEYS, VOCAB = 4096, 14336, 1024, 32768
SHARD = 1_000_000_000
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": VOCAB,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
TOKENIZER = Path(__file__).parents[1] / "core" / "demos" / "mistral"
SIDES = {
    "core": "import core, core.loading, core.text\ndef load(path): return core.load(path)",
    "mlx-lm": "import mlx_lm\ndef load(path): return mlx_lm.load(path)",
}
# A child's ru_maxrss counts what its parent held when it was forked; Linux's VmHWM does not.
_CHILD = """
import resource, sys, time
{}
started = time.perf_counter()
model = load(sys.argv[1])
seconds = time.perf_counter() - started
try:
    peak = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seconds, peak)
"""


def matrix(name: str, rows: int, columns: int, bits: int) -> dict[str, mx.array]:
    """A random matrix's tensors."""
    weight = (mx.random.normal((rows, columns)) * 0.02).astype(mx.bfloat16)
    arrays = [weight] if bits == 16 else mx.quantize(weight, 64, bits)
    mx.eval(arrays)
    return {f"{name}.{role}": array for role, array in zip(("weight", "scales", "biases"), arrays, strict=False)}


def write_source(directory: Path, layers: int, bits: int, divisor: int) -> int:
    """A sharded checkpoint of random weights; returns its bytes."""
    directory.mkdir(parents=True)
    hidden, inter, keys = SIZE // divisor, INTER // divisor, KEYS // divisor
    sizes = {"hidden_size": hidden, "intermediate_size": inter, "num_hidden_layers": layers}
    quantization = {} if bits == 16 else {"quantization": {"group_size": 64, "bits": bits}}
    (directory / "config.json").write_text(json.dumps(CONFIG | sizes | quantization))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, directory / name)
    mx.random.seed(0)
    index: dict[str, str] = {}
    tensors: dict[str, mx.array] = {}
    shards = 0

    def flush() -> None:
        nonlocal shards
        shards += 1
        name = f"model-part{shards}.safetensors"
        mx.save_safetensors(str(directory / name), tensors, {"format": "mlx"})
        index.update(dict.fromkeys(tensors, name))
        tensors.clear()

    tensors |= matrix("model.embed_tokens", VOCAB, hidden, bits)
    for layer in range(layers):
        start = f"model.layers.{layer}"
        for part, rows in {"q": hidden, "k": keys, "v": keys, "o": hidden}.items():
            tensors |= matrix(f"{start}.self_attn.{part}_proj", rows, hidden, bits)
        for part, (rows, columns) in {"gate": (inter, hidden), "up": (inter, hidden), "down": (hidden, inter)}.items():
            tensors |= matrix(f"{start}.mlp.{part}_proj", rows, columns, bits)
        for norm in ("input", "post_attention"):
            tensors[f"{start}.{norm}_layernorm.weight"] = mx.ones((hidden,), mx.bfloat16)
        if sum(array.nbytes for array in tensors.values()) > SHARD:
            flush()
    tensors |= matrix("lm_head", VOCAB, hidden, bits) | {"model.norm.weight": mx.ones((hidden,), mx.bfloat16)}
    flush()
    for number in range(1, shards + 1):
        old, new = f"model-part{number}.safetensors", f"model-{number:05d}-of-{shards:05d}.safetensors"
        (directory / old).rename(directory / new)
        index = {tensor: new if name == old else name for tensor, name in index.items()}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def measured(side: str, source: Path) -> tuple[float, float]:
    """Seconds of a load, and peak resident bytes of its process."""
    command = [sys.executable, "-c", _CHILD.format(SIDES[side]), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--bits", type=int, default=16, choices=(2, 3, 4, 6, 8, 16), help="16: no quantization")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--divisor", type=int, default=1, help="of the model's sizes, to try this script")
    parser.add_argument("--directory", type=Path, help="where to work; it must have room for the model")
    arguments = parser.parse_args()
    sides = [side for side in SIDES if side != "mlx-lm" or importlib.util.find_spec("mlx_lm") is not None]
    runs: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as work:
        source = Path(work) / "source"
        # In a process of its own, whose memory is gone when the loads begin.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            size = pool.apply(write_source, (source, arguments.layers, arguments.bits, arguments.divisor))
        for _ in range(arguments.repeats + 1):
            for side in sides:
                runs[side].append(measured(side, source))
    print(f"{size:,} bytes, {arguments.layers} layers, {arguments.bits} bits, MLX {mx.__version__}, warm file cache")
    for side, found in runs.items():
        seconds = [one for one, _ in found[1:]]
        spread = f"{min(seconds):.2f}–{max(seconds):.2f}"
        memory = statistics.median(peak for _, peak in found[1:]) / 1e6
        print(f"  {side:7} {statistics.median(seconds):6.2f} s ({spread}), peak {memory:,.0f} MB resident")
    if len(sides) == 2:
        ratios = [ours / theirs for (ours, _), (theirs, _) in zip(*(runs[side][1:] for side in sides), strict=True)]
        print(f"  time, core / mlx-lm: {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")


if __name__ == "__main__":
    main()
