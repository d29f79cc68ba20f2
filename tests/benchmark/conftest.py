"""A tiny shape, a quick look at the memory's speed, and a peer that stands in for mlx-lm."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from core.benchmark import bandwidth, entry

TINY = {
    "model_type": "mistral",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "sliding_window": None,
}
TINY_EXPERTS = TINY | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}

_PEER = """
__version__ = "9.9"
print("a word on stdout")

def load(path):
    from pathlib import Path
    if not (Path(path) / "config.json").is_file():
        raise OSError("no config there")
    return object(), None
"""
_GENERATE = """
generation_stream = None

def generate_step(prompt, model, max_tokens):
    if prompt.size == 13:
        import os
        import sys
        print("the end is near", file=sys.stderr, flush=True)
        os._exit(3)
    for _ in range(max_tokens):
        yield 1, None
"""
_MODEL = """
import mlx.nn as nn

class ModelArgs:
    @classmethod
    def from_dict(cls, config):
        assert config["hidden_size"] == 64
        return cls()

class Model(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.matrix = nn.Linear(64, 64)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "memory_bandwidth", lambda: bandwidth.memory_bandwidth(1 << 16))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config.json of a tiny model, with a word on quantization that is not to be believed."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY | {"quantization": {"bits": 2, "group_size": 32}}))
    return file


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package ``mlx_lm``, for this process to find and for its children to import."""
    package = tmp_path / "site" / "mlx_lm"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text(_PEER)
    (package / "generate.py").write_text(_GENERATE)
    (package / "utils.py").write_text('MODEL_REMAPPING = {"mistral": "llama"}\n')
    (package / "models" / "__init__.py").write_text("")
    (package / "models" / "llama.py").write_text(_MODEL)
    monkeypatch.syspath_prepend(package.parent)
    path = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
