"""From the start of a process to its first token: the very first process of a machine, and those after it.

    python benchmarks/cold.py [--config mistral-7b] [--bits 4] [--layers N] [--against mlx-lm] [--batch 32] [--demo]

A checkpoint with random weights is written as mlx-lm would, unless ``--folder`` holds one, and lies in the file cache.
Each line is a process of its own: seconds to import, to load, from there to the first token, and to the 64th. "first"
has no compiled code on disk, neither ours nor MLX's; "second" has what the first has left. ``--batch`` adds a batch of
so many prompts of 512 tokens, with and without ``Batch.warm()``: seconds to the first token and to that of the last
request, and the longest time between two tokens of one request beside the median, while all decode and while others
come and go. ``--demo`` times ``corelm generate``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from core.benchmark.shapes import SHAPES

GROUP = 64
SHARD = 4 << 30  # bytes
CORE = """
import json, sys, time; start = time.perf_counter()
import core; imported = time.perf_counter()
lm = core.load(sys.argv[1], tokenizer=False); loaded = time.perf_counter(); marks = []
for _ in core.generate_tokens(lm.model, list(range(1, 33)), max_tokens=64): marks.append(time.perf_counter())
print(json.dumps([imported - start, loaded - imported, marks[0] - loaded, marks[-1] - loaded]))
"""
PEER = """
import json, sys, time; start = time.perf_counter()
import mlx.core as mx
from pathlib import Path
from mlx_lm.utils import load_model
from mlx_lm.generate import generate_step
imported = time.perf_counter()
model, _ = load_model(Path(sys.argv[1])); loaded = time.perf_counter(); marks = []
for _ in generate_step(mx.array(list(range(1, 33))), model, max_tokens=64): marks.append(time.perf_counter())
print(json.dumps([imported - start, loaded - imported, marks[0] - loaded, marks[-1] - loaded]))
"""
BATCH = """
import itertools, json, statistics, sys, time, core
rows, warm, steps = int(sys.argv[2]), sys.argv[3] == "warm", int(sys.argv[4])
lm = core.load(sys.argv[1], tokenizer=False); loaded = time.perf_counter()
batch = core.Batch(lm.model, max_rows=rows)
if warm: batch.warm()
warmed = time.perf_counter()
def submit(place, prompt, tokens):
    ids = [(7 * i + 13 * place) % lm.config.vocab_size for i in range(prompt)]
    return batch.submit(ids, max_tokens=tokens, temperature=0.7 * (place % 2), seed=place)
requests = [submit(row, 512, steps) for row in range(rows)]
seen, firsts = set(), []
while len(seen) < rows:
    for event in batch.step():
        if event.request.id not in seen:
            seen.add(event.request.id)
            firsts.append(time.perf_counter() - warmed)
def gaps(count, refill):
    last, found = {}, []
    for _ in range(count):
        if not (refill or batch.pending): break
        requests[:] = [request for request in requests if not request.done]
        while refill and len(requests) < rows:
            place = next(places)
            requests.append(submit(place, 1 + 37 * place % 900, 20 + 11 * place % 90))
        told = {event.request.id for event in batch.step()}
        now = time.perf_counter()
        found += [1e3 * (now - last[id]) for id in told & last.keys()]
        last.update(dict.fromkeys(told, now))
    return max(found), statistics.median(found)
places = itertools.count(100)
steady = gaps(steps - 10, False)
for request in requests: request.cancel()
print(json.dumps([warmed - loaded, firsts[0], firsts[-1], *steady, *gaps(steps // 4, True)]))
"""


def write_checkpoint(config: dict[str, Any], bits: int, folder: Path) -> None:
    """Random weights of a shape, in mlx-lm's layout; the router and the norms stay floats."""
    folder.mkdir(parents=True)
    arrays: dict[str, mx.array] = {}
    index: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        mx.save_safetensors(str(folder / name), arrays, metadata={"format": "mlx"})
        index.update(dict.fromkeys(arrays, name))
        arrays.clear()

    def add(name: str, *shape: int, packed: bool = True) -> None:
        weight = (mx.random.normal(shape) * shape[-1] ** -0.5).astype(mx.bfloat16)
        if bits == 16 or not packed:
            arrays[f"{name}.weight"] = weight if len(shape) > 1 else mx.ones(shape, mx.bfloat16)
        else:
            parts = zip(("weight", "scales", "biases"), mx.quantize(weight, GROUP, bits), strict=True)
            arrays.update({f"{name}.{part}": array for part, array in parts})
        mx.eval(list(arrays.values())[-3:])
        if sum(array.nbytes for array in arrays.values()) > SHARD:
            flush()

    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    add("model.embed_tokens", config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows in (("q", heads), ("k", config["num_key_value_heads"]), ("v", config["num_key_value_heads"])):
            add(f"{at}self_attn.{name}_proj", rows * head_dim, hidden)
        add(at + "self_attn.o_proj", hidden, heads * head_dim)
        experts = config.get("num_local_experts")
        place, first = (at + "mlp.", ()) if experts is None else (at + "block_sparse_moe.switch_mlp.", (experts,))
        if experts is not None:
            add(at + "block_sparse_moe.gate", experts, hidden, packed=False)
        for name in ("gate", "up"):
            add(f"{place}{name}_proj", *first, inner, hidden)
        add(place + "down_proj", *first, hidden, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            add(at + name, hidden, packed=False)
    add("model.norm", hidden, packed=False)
    add("lm_head", config["vocab_size"], hidden)
    flush()
    quantization: dict[str, Any] = {"group_size": GROUP, "bits": bits}
    if "num_local_experts" in config:
        gates = (f"model.layers.{i}.block_sparse_moe.gate" for i in range(config["num_hidden_layers"]))
        quantization |= dict.fromkeys(gates, False)
    more = {} if bits == 16 else {"quantization": quantization, "quantization_config": quantization}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16", **more}))


def run(code: str, *arguments: str, environment: dict[str, str]) -> tuple[float, list[float]]:
    """Wall time of a process, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    wall = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    return wall, json.loads(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "[]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="mistral-7b", help="a shape's name, or a config.json")
    parser.add_argument("--bits", type=int, default=4, choices=[4, 8, 16])
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--against", choices=["mlx-lm"])
    parser.add_argument("--batch", type=int, help="rows of a batch")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--steps", type=int, default=1000, help="of the batch that are timed")
    parser.add_argument("--runs", type=int, default=2, help="processes of each side")
    parser.add_argument("--folder", type=Path, help="holds the checkpoint, or will")
    arguments = parser.parse_args()
    config = dict(
        SHAPES[arguments.config] if arguments.config in SHAPES else json.loads(Path(arguments.config).read_text())
    )
    if arguments.layers:
        config["num_hidden_layers"] = arguments.layers
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch) / "checkpoint"
        if not folder.exists():
            write_checkpoint(config, arguments.bits, folder)
            mx.clear_cache()
        # A program's own bytecode is on disk wherever it was installed.
        clean = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{scratch}/bytecode"}
        sides = [("core", CORE)] + ([("mlx-lm", PEER)] if arguments.against else [])
        print(f"{arguments.config} {arguments.bits} bits; s: whole process, import, load, to token 1, to token 64")
        for name, code in sides:
            run("import core, core.loading, core.fast", environment=clean)
            own = {"CORE_KERNEL_CACHE": f"{scratch}/{name}", "MLX_PTX_CACHE_DIR": f"{scratch}/{name}-mlx", **clean}
            for turn in range(arguments.runs):
                wall, parts = run(code, str(folder), environment=own)
                label = "first" if turn == 0 else "second" if turn == 1 else f"{turn + 1}."
                print(f"  {name:7} {label:7} {wall:6.2f}  " + " ".join(f"{part:6.2f}" for part in parts), flush=True)
        own = {"CORE_KERNEL_CACHE": f"{scratch}/core", "MLX_PTX_CACHE_DIR": f"{scratch}/core-mlx", **clean}
        for how in ("cold", "cold", "warm") if arguments.batch else ():
            command = (str(folder), str(arguments.batch), how, str(arguments.steps))
            warmed, first, last, *gaps = run(BATCH, *command, environment=own)[1]
            print(f"  batch, {how}: warm() {warmed:.2f} s, first token {first:.2f} s, of all {last:.2f} s")
            for what, longest, median in (("all decode", *gaps[:2]), ("others come and go", *gaps[2:])):
                ratio = longest / median
                print(
                    f"    {what}: longest gap {longest:.1f} ms, median {median:.1f} ms, {ratio:.1f} times", flush=True
                )
        for _ in range(2 if arguments.demo else 0):
            code = "import sys; from core.cli import main; print([main(sys.argv[1:])])"
            command = ["generate", "To be, or", "--model", "demo:mistral", "--max-tokens", "48"]
            print(f"  corelm generate, demo: {run(code, *command, environment=own)[0]:.2f} s", flush=True)


if __name__ == "__main__":
    main()
