"""``benchmarks/quantization.py`` runs: its table has a row for each format, on a checkpoint that nobody trained."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import core
from core.weights import checkpoint_tensors

ROOT = Path(core.__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "quantization.py"
DEMO = ROOT / "core" / "demos" / "mixtral"
SMALL = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A directory with one tiny random checkpoint in bfloat16, with the demo models' tokenizer."""
    config = json.loads((DEMO / "config.json").read_text()) | SMALL
    config = {key: value for key, value in config.items() if not key.startswith("quantization")}
    directory = tmp_path / "tiny"
    directory.mkdir()
    mx.random.seed(0)
    built = core.build(config)
    built.model.set_dtype(mx.bfloat16)
    tensors = checkpoint_tensors(built.model, built.plugin.weight_map(built.config, "mlx"))
    mx.save_safetensors(str(directory / "model.safetensors"), tensors, metadata={"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((DEMO / name).read_bytes())
    return tmp_path


@pytest.mark.skipif(not SCRIPT.is_file(), reason="a source distribution has no benchmarks")
def test_the_table(checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--context", "16", "--max-tokens", "24", "--against-full"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(checkpoints), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names = ["bfloat16", "8 bits", "6 bits", "5 bits", "4 bits", "3 bits", "2 bits", "mxfp8", "mxfp4", "nvfp4"]
    assert [row[0] for row in table[1:]] == names
    bits = dict(zip(names, (float(row[1]) for row in table[1:]), strict=True))
    assert bits["bfloat16"] == 16
    assert 2.5 < bits["2 bits"] < bits["mxfp4"] < bits["4 bits"] < bits["8 bits"] < 9
    divergences = dict(zip(names, (float(row[4]) for row in table[1:]), strict=True))
    assert divergences["bfloat16"] == 0
    # Neighbours may change places: a router without training has ties that any rounding breaks.
    assert 0 < divergences["8 bits"] < divergences["4 bits"] < divergences["2 bits"]
