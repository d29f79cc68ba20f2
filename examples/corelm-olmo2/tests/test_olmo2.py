"""The checks that core has for every architecture, on a tiny OLMo 2 and on one with what its config can switch."""

import json
from pathlib import Path

from core.testing import ArchitectureTests

HERE = Path(__file__).parent


class TestOlmo2(ArchitectureTests):
    reference = HERE / "reference"
    layouts = ("hf",)


class TestOlmo2WithBiases(ArchitectureTests):
    config = json.loads((HERE / "config.json").read_text()) | {
        "attention_bias": True,
        "num_key_value_heads": None,
        "tie_word_embeddings": True,
    }
