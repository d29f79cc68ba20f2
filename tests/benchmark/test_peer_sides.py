"""transformers' and llama.cpp's sides compute what we compute, of the same weights. Skipped where one is missing."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
from core.benchmark import Shape
from core.benchmark.gguf_file import completed, side_by_side, tensors
from core.benchmark.peer import PeerProcess
from core.benchmark.peer_kinds import PEERS
from core.benchmark.settings import prompt
from core.errors import BenchmarkError
from tests.benchmark.conftest import TINY, TINY_EXPERTS

# Several heads of each kind, rows that Q4_0 can take, and a rotary base at which the order of the pairs counts.
SMALL = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rope_theta": 100.0, "rms_norm_eps": 1e-5}
PARTS = [prompt(8, 100), [7], [3]]  # few: where two experts are nearly even, rounding chooses another
SEED = 2
ERRORS = {
    "transformers:float32": 1e-4,
    "transformers:bfloat16": 0.05,
    "llama.cpp:F32": 5e-3,  # keys and values are kept in float16
    "llama.cpp:F16": 5e-3,
    "llama.cpp:BF16": 0.05,
    "llama.cpp:Q8_0": 0.15,  # activations have 8 bits too
    "llama.cpp:Q4_0": 0.15,
}
"""Root mean square of the logits' errors, where logits have a standard deviation of about 1."""


def installed(name: str) -> pytest.MarkDecorator:
    """Skips where a module of the peer is missing."""
    missing = [module for module in PEERS[name.partition(":")[0]].modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def peers(*names: str) -> list[Any]:
    return [pytest.param(name, marks=installed(name)) for name in names]


def four_bits(values: Any) -> Any:
    """Rounds to one of 16 multiples of a float16 for each 32 values, of which the largest is the lowest multiple."""
    groups = values.reshape(-1, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)
    step = (largest / -8).astype(np.float16).astype(np.float32)
    return (np.clip(np.round(groups / step), -8, 7) * step).reshape(values.shape)


@pytest.fixture(scope="module", params=[TINY | SMALL, TINY_EXPERTS | SMALL], ids=["mistral", "mixtral"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random float32 weights in Hugging Face's layout; the matrices have values that Q4_0 stores exactly."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(SEED)
    weights = {}
    for tensor in tensors(completed(request.param)):
        for name in tensor.sources:
            noise = random.standard_normal(tensor.shape, np.float32)
            weights[name] = four_bits(noise) * tensor.shape[-1] ** -0.5 if len(tensor.shape) > 1 else 1 + noise / 4
    folder = tmp_path_factory.mktemp("checkpoint")
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(request.param))
    return folder


@pytest.mark.parametrize("name", peers(*ERRORS))
def test_logits_are_ours(checkpoint: Path, name: str) -> None:
    model = core.load(checkpoint, dtype=mx.float32, tokenizer=False).model
    with PeerProcess(name) as process:
        process.load(checkpoint)
        theirs = np.array(process._ask(do="logits", parts=PARTS)["logits"])
        run = process.run(PARTS[0], 5)
    ends = np.cumsum([len(part) for part in PARTS]) - 1
    ours = np.array(model(mx.array([[*itertools.chain(*PARTS)]])))[0, ends]
    assert 0.5 < ours.std() < 2
    error = np.square(theirs - ours).mean() ** 0.5
    assert error < ERRORS[name]
    assert run.first_token > 0
    assert run.decode > 0
    assert run.peak_memory > 1 << 20


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", peers("llama.cpp:F32"))
def test_checkpoints_in_half_precision(checkpoint: Path, tmp_path: Path, name: str, dtype: str) -> None:
    halves = tmp_path / "halves"
    core.convert(checkpoint, halves, dtype=dtype)
    model = core.load(halves, dtype=mx.float32, tokenizer=False).model
    with PeerProcess(name) as process:
        process.load(halves)
        theirs = np.array(process._ask(do="logits", parts=PARTS[:1])["logits"])
    assert np.abs(theirs - np.array(model(mx.array(PARTS[:1])))[0, -1]).max() < 2e-2


@pytest.mark.parametrize("name", peers("transformers:float32", "llama.cpp"))
@pytest.mark.parametrize("config", [TINY, TINY_EXPERTS], ids=["mistral", "mixtral"])
def test_random_weights(name: str, config: dict[str, Any]) -> None:
    bits = 4 if name == "llama.cpp" else None
    found = core.bench(Shape("tiny", config, bits), prompt_tokens=[5], generate=3, iterations=1, against=name)
    assert found.peers[0].weights == ("Q4_0" if bits else "float32")
    assert found.lengths[0].peers[0].decode.median > 0


@installed("llama.cpp")
def test_a_file_of_random_weights_is_gone_once_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with PeerProcess("llama.cpp") as process:
        process.make(Shape("tiny", TINY))
        assert not list(tmp_path.rglob("*.gguf"))
        process.run([1, 2, 3], 5)


@installed("llama.cpp")
def test_what_llama_cpp_would_compute_otherwise_is_refused() -> None:
    with PeerProcess("llama.cpp") as process:
        process.make(Shape("tiny", TINY | {"sliding_window": 8}))
        process.run([1, 2, 3], 5)
        with pytest.raises(BenchmarkError, match="ignores the window of 8 tokens"):
            process.run([1, 2, 3], 6)
        with pytest.raises(BenchmarkError, match="mistral and mixtral, and not of llama"):
            process.make(Shape("tiny", TINY | {"model_type": "llama"}))
        with pytest.raises(BenchmarkError, match="plain rotary embeddings only"):
            process.make(Shape("tiny", TINY | {"rope_scaling": {"type": "linear", "factor": 2.0}}))


def test_rotary_pairs_are_put_side_by_side() -> None:
    rows = np.arange(8)[:, None] * np.ones((1, 3), int)  # two heads of four rows: pairs are 0 2, 1 3, 4 6, 5 7
    assert side_by_side(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_configs_of_files() -> None:
    found = completed({**TINY, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}, "rms_norm_eps": None})
    assert (found["rope_theta"], found["rms_norm_eps"], found["head_dim"]) == (5.0, 1e-6, 32)
    without = {key: value for key, value in TINY_EXPERTS.items() if key != "head_dim"}
    assert (completed(without)["rope_theta"], completed(without)["head_dim"]) == (1e6, 32)
    assert not [t for t in tensors(completed(TINY | {"tie_word_embeddings": True})) if t.name == "output.weight"]
