"""A conversion holds one block at a time, however many there are: measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx

from tests.cuda import skip_figures_of_the_cpu_allocator

ROOT = Path(__file__).resolve().parents[2]
SIZE, INTER, EXPERTS, VOCAB = 256, 1024, 8, 512
BLOCK = 2 * (3 * EXPERTS * SIZE * INTER + 4 * SIZE * SIZE)  # bytes of a block in bfloat16: 13 MB
CHILD = """
import json, sys
import mlx.core as mx
import core
mx.reset_peak_memory()
core.convert(sys.argv[1], sys.argv[2], layout="mlx", max_shard_size=20_000_000)
print(json.dumps(mx.get_peak_memory()))
"""


def test_the_peak_is_two_blocks_and_does_not_grow_with_layers(tmp_path: Path) -> None:
    few, many = (_peak(tmp_path, layers) for layers in (4, 8))
    largest = 2 * EXPERTS * SIZE * INTER  # the largest tensor, once more while it is put in order for the file
    assert few <= 2 * BLOCK + largest
    assert many <= few + 1_000_000


def _peak(directory: Path, layers: int) -> int:
    skip_figures_of_the_cpu_allocator()
    source = directory / f"source-{layers}"
    _write(source, layers)
    command = [sys.executable, "-W", "error", "-c", CHILD, str(source), str(directory / f"out-{layers}")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return int(json.loads(done.stdout))


def _write(directory: Path, layers: int) -> None:
    directory.mkdir()
    config = {
        "model_type": "mixtral",
        "hidden_size": SIZE,
        "intermediate_size": INTER,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (VOCAB, SIZE), "model.norm": (SIZE,)}
    for layer in range(layers):
        path = f"model.layers.{layer}"
        shapes |= {f"{path}.{norm}_layernorm": (SIZE,) for norm in ("input", "post_attention")}
        shapes |= {f"{path}.self_attn.{part}_proj": (SIZE, SIZE) for part in "qkvo"}
        shapes[f"{path}.block_sparse_moe.gate"] = (EXPERTS, SIZE)
        for expert in range(EXPERTS):
            own = f"{path}.block_sparse_moe.experts.{expert}"
            shapes |= {f"{own}.w1": (INTER, SIZE), f"{own}.w3": (INTER, SIZE), f"{own}.w2": (SIZE, INTER)}
    tensors = {f"{name}.weight": mx.zeros(shape, mx.bfloat16) for name, shape in shapes.items()}
    mx.save_safetensors(str(directory / "model.safetensors"), tensors)
